//! Reading of a TOML document that keeps the line of every key and every value, and collects
//! errors instead of stopping at the first.
//!
//! A [`Section`] is one table. Each key it may hold is asked for by name; [`Section::finish`]
//! then reports the keys nobody asked for. So the set of known keys is what the code reads, and
//! cannot drift from it.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::Display,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors};

/// Where in the text something stands.
pub(super) type Span = Range<usize>;

/// The text being read, and what was found wrong with it.
pub(super) struct Document<'a> {
    pub(super) file: &'a Path,
    text: &'a str,
    errors: RefCell<Vec<ConfigError>>,
    known: RefCell<BTreeSet<String>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Document {
            file,
            text,
            errors: RefCell::default(),
            known: RefCell::default(),
        }
    }

    /// The root table. Syntax errors are recorded; what could be read is returned.
    pub(super) fn parse(&self) -> Spanned<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.error(error.span(), "", error.message());
        }
        table
    }

    pub(super) fn error(&self, span: Option<Span>, key: &str, reason: impl Display) {
        let line = span.map(|span| {
            let before = self.text.get(..span.start).unwrap_or(self.text);
            before.matches('\n').count() + 1
        });
        self.errors.borrow_mut().push(ConfigError {
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            reason: reason.to_string(),
        });
    }

    pub(super) fn is_clean(&self) -> bool {
        self.errors.borrow().is_empty()
    }

    /// The errors, and every key that was asked for, without indexes: `pool.block_size`.
    pub(super) fn finish(self) -> (Option<ConfigErrors>, BTreeSet<String>) {
        (
            ConfigErrors::collect(self.errors.into_inner()),
            self.known.into_inner(),
        )
    }
}

/// A value with the place it came from.
#[derive(Clone, Debug)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// One table of the document, or one that is absent: then every key of it is.
pub(super) struct Section<'d, 'a, 't> {
    pub(super) document: &'d Document<'a>,
    path: String,
    table: Option<&'t DeTable<'a>>,
    span: Option<Span>,
    asked: BTreeSet<&'static str>,
}

impl<'d, 'a, 't> Section<'d, 'a, 't> {
    pub(super) fn root(document: &'d Document<'a>, table: &'t Spanned<DeTable<'a>>) -> Self {
        Section {
            document,
            path: String::new(),
            table: Some(table.get_ref()),
            span: Some(table.span()),
            asked: BTreeSet::new(),
        }
    }

    fn child(&self, path: String, table: Option<&'t DeTable<'a>>, span: Option<Span>) -> Self {
        Section {
            document: self.document,
            path,
            table,
            span,
            asked: BTreeSet::new(),
        }
    }

    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// `bgp.peer[2].asn`
    pub(super) fn key(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// Reports something about the key `name`, at `span` or else at the section.
    pub(super) fn error(&self, name: &str, span: Option<Span>, reason: impl Display) {
        let span = span.or_else(|| self.span.clone());
        self.document.error(span, &self.key(name), reason);
    }

    /// As [`error`](Self::error), for an element of an array.
    pub(super) fn error_at(&self, name: &str, index: usize, span: Span, reason: impl Display) {
        self.error(&format!("{name}[{index}]"), Some(span), reason);
    }

    pub(super) fn value(&mut self, name: &'static str) -> Option<&'t Spanned<DeValue<'a>>> {
        self.asked.insert(name);
        let mut plain = String::new();
        let mut depth = 0;
        for character in self.key(name).chars() {
            match character {
                '[' => depth += 1,
                ']' => depth -= 1,
                other if depth == 0 => plain.push(other),
                _ => {}
            }
        }
        self.document.known.borrow_mut().insert(plain);
        self.table?.get(name)
    }

    fn wrong_type(&self, name: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = value.get_ref().type_str();
        let reason = format!("expected {expected}, found a value of type {found}");
        self.error(name, Some(value.span()), reason);
    }

    /// A table of this section.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'d, 'a, 't> {
        let found = self.value(name);
        let table = found.and_then(|value| match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.wrong_type(name, value, "a table");
                None
            }
        });
        let span = found.map(|value| self.table_span(name, value));
        self.child(self.key(name), table, span)
    }

    /// The header's place rather than that of its content.
    fn table_span(&self, name: &str, value: &Spanned<DeValue<'_>>) -> Span {
        self.table
            .and_then(|table| table.get_key_value(name))
            .map_or(value.span(), |(key, _)| key.span())
    }

    /// The tables of an array of tables, `[[name]]`.
    pub(super) fn sections(&mut self, name: &'static str) -> Vec<Section<'d, 'a, 't>> {
        let Some(value) = self.value(name) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(
                name,
                value,
                &format!("an array of tables, [[{}]]", self.key(name)),
            );
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, element) in array.iter().enumerate() {
            match element.get_ref() {
                DeValue::Table(table) => sections.push(self.child(
                    self.key(&format!("{name}[{index}]")),
                    Some(table),
                    Some(element.span()),
                )),
                _ => self.wrong_type(&format!("{name}[{index}]"), element, "a table"),
            }
        }
        sections
    }

    pub(super) fn string(&mut self, name: &'static str) -> Option<Found<&'t str>> {
        let value = self.value(name)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Found {
                value: text.as_ref(),
                span: value.span(),
            }),
            _ => {
                self.wrong_type(name, value, "a string");
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Option<Found<bool>> {
        let value = self.value(name)?;
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(Found {
                value: *boolean,
                span: value.span(),
            }),
            _ => {
                self.wrong_type(name, value, "true or false");
                None
            }
        }
    }

    /// An integer in `range`.
    pub(super) fn integer(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Option<Found<u32>> {
        let value = self.value(name)?;
        let (low, high) = (range.start(), range.end());
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(name, value, &format!("an integer from {low} to {high}"));
            return None;
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(Found {
                value: number,
                span: value.span(),
            }),
            _ => {
                let reason = format!("{integer} is out of range; {low} to {high} are allowed");
                self.error(name, Some(value.span()), reason);
                None
            }
        }
    }

    /// Reports an empty array where one makes no sense: as a condition it could never hold, and as
    /// an action it does nothing.
    fn not_empty(&self, name: &str, value: &Spanned<DeValue<'_>>) {
        if let DeValue::Array(array) = value.get_ref()
            && array.is_empty()
        {
            let reason = "is empty; name at least one, or remove this key";
            self.error(name, Some(value.span()), reason);
        }
    }

    /// An array of integers in `range`, not empty. Elements that are none are reported.
    pub(super) fn integers(
        &mut self,
        name: &'static str,
        range: &std::ops::RangeInclusive<u32>,
    ) -> Option<Vec<Found<u32>>> {
        let value = self.value(name)?;
        let (low, high) = (range.start(), range.end());
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(name, value, "an array of integers");
            return None;
        };
        self.not_empty(name, value);
        let mut list = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let DeValue::Integer(integer) = element.get_ref() else {
                self.wrong_type(&format!("{name}[{index}]"), element, "an integer");
                continue;
            };
            match u32::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(value) if range.contains(&value) => list.push(Found {
                    value,
                    span: element.span(),
                }),
                _ => {
                    let reason = format!("{integer} is out of range; {low} to {high} are allowed");
                    self.error_at(name, index, element.span(), reason);
                }
            }
        }
        Some(list)
    }

    /// An array of strings, not empty, each read by `read`, which says what is wrong with one.
    pub(super) fn list_with<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.value(name)?;
        self.not_empty(name, value);
        let list = self.list::<String>(name, "a string")?;
        let mut values = Vec::new();
        for (index, Found { value, span }) in list.into_iter().enumerate() {
            match read(&value) {
                Ok(value) => values.push(value),
                Err(reason) => self.error_at(name, index, span, reason),
            }
        }
        Some(values)
    }

    /// A string that parses as `T`; `expected` says what is allowed.
    pub(super) fn parsed<T: FromStr>(
        &mut self,
        name: &'static str,
        expected: &str,
    ) -> Option<Found<T>> {
        let Found { value, span } = self.string(name)?;
        match value.parse() {
            Ok(value) => Some(Found { value, span }),
            Err(_) => {
                self.error(name, Some(span), format!("\"{value}\" is not {expected}"));
                None
            }
        }
    }

    /// An array of strings that each parse as `T`. Elements that do not are reported.
    pub(super) fn list<T: FromStr>(
        &mut self,
        name: &'static str,
        expected: &str,
    ) -> Option<Vec<Found<T>>> {
        let value = self.value(name)?;
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(name, value, "an array of strings");
            return None;
        };
        let mut list = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let DeValue::String(text) = element.get_ref() else {
                self.wrong_type(&format!("{name}[{index}]"), element, "a string");
                continue;
            };
            match text.parse() {
                Ok(value) => list.push(Found {
                    value,
                    span: element.span(),
                }),
                Err(_) => {
                    let reason = format!("\"{text}\" is not {expected}");
                    self.error_at(name, index, element.span(), reason);
                }
            }
        }
        Some(list)
    }

    /// A table of strings under names that are free.
    pub(super) fn strings(&mut self, name: &'static str) -> Option<Vec<(String, Found<String>)>> {
        let value = self.value(name)?;
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(name, value, "a table of strings");
            return None;
        };
        let mut list = Vec::new();
        for (key, element) in table.iter() {
            let key: &str = key.get_ref().as_ref();
            match element.get_ref() {
                DeValue::String(text) => list.push((
                    key.to_owned(),
                    Found {
                        value: text.as_ref().to_owned(),
                        span: element.span(),
                    },
                )),
                _ => self.wrong_type(&format!("{name}.{key}"), element, "a string"),
            }
        }
        Some(list)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Option<Found<T>> {
        let Found { value, span } = self.string(name)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == value) {
            return Some(Found {
                value: *choice,
                span,
            });
        }
        let allowed = words(choices.iter().map(|(word, _)| *word));
        let reason = format!("\"{value}\" is unknown; {allowed} are allowed");
        self.error(name, Some(span), reason);
        None
    }

    /// A duration such as "130s" or "2m", within bounds.
    pub(super) fn duration(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Option<Found<Duration>> {
        let Found { value, span } = self.string(name)?;
        let Ok(duration) = humantime::parse_duration(value) else {
            let reason = format!("\"{value}\" is not a duration; write it as \"130s\" or \"2m\"");
            self.error(name, Some(span), reason);
            return None;
        };
        if range.contains(&duration) {
            return Some(Found {
                value: duration,
                span,
            });
        }
        let low = humantime::format_duration(*range.start());
        let high = humantime::format_duration(*range.end());
        let reason = format!("\"{value}\" is out of range; {low} to {high} are allowed");
        self.error(name, Some(span), reason);
        None
    }

    /// An absolute path.
    pub(super) fn absolute_path(&mut self, name: &'static str) -> Option<Found<PathBuf>> {
        let Found { value, span } = self.string(name)?;
        let path = PathBuf::from(value);
        if !path.is_absolute() || value.contains('\0') {
            let reason = format!("\"{value}\" is not an absolute path");
            self.error(name, Some(span), reason);
            return None;
        }
        Some(Found { value: path, span })
    }

    /// A key of the format whose feature does not exist yet.
    pub(super) fn unsupported(&mut self, name: &'static str) {
        if let Some(value) = self.value(name) {
            let span = self.table_span(name, value);
            self.error(name, Some(span), "is not supported yet");
        }
    }

    /// Reports a key that must be there.
    pub(super) fn required<T>(&self, name: &str, value: Option<T>, what: &str) -> Option<T> {
        let absent = self.table.is_none_or(|table| !table.contains_key(name));
        if value.is_none() && absent {
            self.error(name, None, format!("is missing; {what}"));
        }
        value
    }

    /// Reports keys that were never asked for.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, _) in table.iter() {
            let name: &str = key.get_ref().as_ref();
            if !self.asked.contains(name) {
                let allowed = words(self.asked.iter().copied());
                let reason = format!("unknown key; known here: {allowed}");
                self.error(name, Some(key.span()), reason);
            }
        }
    }
}

/// `a, b and c`
pub(super) fn words<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let words: Vec<&str> = words.collect();
    match words.as_slice() {
        [] => "nothing".to_owned(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
