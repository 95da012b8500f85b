//! Which labels something must have: `rack in (a, b), disk = ssd, !old`.
//!
//! Terms are separated by commas and must all hold:
//!
//! | term | holds when |
//! |---|---|
//! | `key = value` (or `==`) | the label has that value |
//! | `key != value` | the label has another value, or is absent |
//! | `key in (a, b)` | the label has one of these values |
//! | `key notin (a, b)` | the label has none of these values, or is absent |
//! | `key` | the label is there, whatever its value |
//! | `!key` | the label is absent |
//!
//! Keys and values are words of `[A-Za-z0-9._/:-]`, or any text in single quotes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// See the module. Selectors are equal when they were written alike.
#[derive(Clone, PartialEq, Eq)]
pub struct Selector {
    text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    /// The label has one of these values.
    In(String, BTreeSet<String>),
    /// The label has none of these values, or is absent.
    NotIn(String, BTreeSet<String>),
    Present(String),
    Absent(String),
}

impl Selector {
    /// Longest text.
    const MAX_LENGTH: usize = 1024;

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.terms.iter().all(|term| match term {
            Term::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Term::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Term::Present(key) => labels.contains_key(key),
            Term::Absent(key) => !labels.contains_key(key),
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({:?})", self.text)
    }
}

impl FromStr for Selector {
    /// What is wrong, for a person.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > Self::MAX_LENGTH {
            return Err(format!(
                "has {} bytes; at most {} are allowed",
                text.len(),
                Self::MAX_LENGTH
            ));
        }
        let tokens = tokens(text)?;
        let mut rest = tokens.as_slice();
        let mut terms = Vec::new();
        loop {
            let (term, after) = term(rest)?;
            terms.push(term);
            match after {
                [] => break,
                [Token::Comma, after @ ..] => rest = after,
                [other, ..] => return Err(format!("a comma is missing before {other}")),
            }
        }
        Ok(Self {
            text: text.to_owned(),
            terms,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// In quotes: never a keyword.
    Word(String, bool),
    Equal,
    NotEqual,
    Not,
    Open,
    Close,
    Comma,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word, _) => write!(f, "\"{word}\""),
            Token::Equal => f.write_str("\"=\""),
            Token::NotEqual => f.write_str("\"!=\""),
            Token::Not => f.write_str("\"!\""),
            Token::Open => f.write_str("\"(\""),
            Token::Close => f.write_str("\")\""),
            Token::Comma => f.write_str("\",\""),
        }
    }
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._/:-".contains(character)
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        tokens.push(match character {
            ' ' | '\t' => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '=' => {
                characters.next_if_eq(&'=');
                Token::Equal
            }
            '!' => match characters.next_if_eq(&'=') {
                Some(_) => Token::NotEqual,
                None => Token::Not,
            },
            '\'' => {
                let mut word = String::new();
                loop {
                    match characters.next() {
                        Some('\'') => break,
                        Some(other) => word.push(other),
                        None => return Err("a quote is not closed".to_owned()),
                    }
                }
                Token::Word(word, true)
            }
            first if is_word(first) => {
                let mut word = String::from(first);
                while let Some(next) = characters.next_if(|next| is_word(*next)) {
                    word.push(next);
                }
                Token::Word(word, false)
            }
            other => {
                return Err(format!(
                    "{other:?} is not allowed here; put values with it in single quotes"
                ));
            }
        });
    }
    Ok(tokens)
}

/// One term and what stands behind it.
fn term(tokens: &[Token]) -> Result<(Term, &[Token]), String> {
    match tokens {
        [Token::Not, Token::Word(key, _), rest @ ..] => Ok((Term::Absent(label(key)?), rest)),
        [
            Token::Word(key, _),
            comparison @ (Token::Equal | Token::NotEqual),
            rest @ ..,
        ] => {
            let [Token::Word(value, _), rest @ ..] = rest else {
                return Err(format!("a value is missing after {comparison}"));
            };
            let values = BTreeSet::from([value.clone()]);
            let key = label(key)?;
            let term = match comparison {
                Token::Equal => Term::In(key, values),
                _ => Term::NotIn(key, values),
            };
            Ok((term, rest))
        }
        [Token::Word(key, _), Token::Word(word, false), rest @ ..]
            if word == "in" || word == "notin" =>
        {
            let (values, rest) = set(rest).ok_or_else(|| {
                format!("\"{word}\" needs values in parentheses, such as {word} (a, b)")
            })?;
            let key = label(key)?;
            let term = if word == "in" {
                Term::In(key, values)
            } else {
                Term::NotIn(key, values)
            };
            Ok((term, rest))
        }
        [Token::Word(key, _), rest @ ..] => Ok((Term::Present(label(key)?), rest)),
        [other, ..] => Err(format!("a label is missing before {other}")),
        [] => Err("a label is missing at the end".to_owned()),
    }
}

fn label(key: &str) -> Result<String, String> {
    if key.is_empty() {
        return Err("the name of a label is empty".to_owned());
    }
    Ok(key.to_owned())
}

/// `(a, b)`, with at least one value.
fn set(tokens: &[Token]) -> Option<(BTreeSet<String>, &[Token])> {
    let (Token::Open, mut rest) = tokens.split_first()? else {
        return None;
    };
    let mut values = BTreeSet::new();
    loop {
        match rest {
            [Token::Word(value, _), Token::Comma, after @ ..] => {
                values.insert(value.clone());
                rest = after;
            }
            [Token::Word(value, _), Token::Close, after @ ..] => {
                values.insert(value.clone());
                return Some((values, after));
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[track_caller]
    fn check(selector: &str, pairs: &[(&str, &str)], expected: bool) {
        let parsed: Selector = selector.parse().unwrap();
        assert_eq!(parsed.matches(&labels(pairs)), expected, "{selector}");
        assert_eq!(parsed.to_string(), selector);
    }

    #[test]
    fn every_term_of_a_selector_must_hold() {
        let node = [("rack", "a"), ("disk", "ssd"), ("gpu", "")];
        check("rack = a", &node, true);
        check("rack == a", &node, true);
        check("rack=b", &node, false);
        check("zone = a", &node, false);
        check("rack != b", &node, true);
        check("rack != a", &node, false);
        check("zone != a", &node, true);
        check("rack in (a, b)", &node, true);
        check("rack in (b,c)", &node, false);
        check("zone in (b)", &node, false);
        check("rack notin (b, c)", &node, true);
        check("rack notin (a)", &node, false);
        check("zone notin (a)", &node, true);
        check("gpu", &node, true);
        check("zone", &node, false);
        check("!zone", &node, true);
        check("!gpu", &node, false);
        check("rack in (a, b), disk = ssd, !old", &node, true);
        check("rack in (a, b), disk = hdd", &node, false);
        check("'a b' = 'x, y'", &[("a b", "x, y")], true);
        check("gpu = ''", &node, true);
        check("in in (in)", &[("in", "in")], true);
    }

    #[test]
    fn a_selector_that_makes_no_sense_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "a label is missing at the end"),
            ("a,", "a label is missing at the end"),
            ("= a", "a label is missing before \"=\""),
            ("a =", "a value is missing after \"=\""),
            ("a != (b)", "a value is missing after \"!=\""),
            ("a b", "a comma is missing before \"b\""),
            (
                "a in b",
                "\"in\" needs values in parentheses, such as in (a, b)",
            ),
            (
                "a notin ()",
                "\"notin\" needs values in parentheses, such as notin (a, b)",
            ),
            (
                "a in (b",
                "\"in\" needs values in parentheses, such as in (a, b)",
            ),
            ("a = 'b", "a quote is not closed"),
            ("'' = b", "the name of a label is empty"),
            (
                "a = b|c",
                "'|' is not allowed here; put values with it in single quotes",
            ),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap_err(), reason, "{text}");
        }
        let long = "a".repeat(1025);
        assert!(long.parse::<Selector>().is_err());
    }
}
