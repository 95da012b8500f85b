//! `[[policy]]`: named lists of rules, which `import` and `export` of `[bgp]` and `[[bgp.peer]]`
//! choose by name.
//!
//! A rule has conditions (`match`), exceptions (`unless`), an action and alterations (`set`). Each
//! key of `match` holds when one of its values does; a rule applies when all its keys hold. The
//! first rule that applies decides; what none decides is rejected.

use std::sync::Arc;

use bgp::{
    attributes::{Origin, parse_community, parse_large_community},
    policy::{Action, AsPathMatch, Match, Policy, PrefixList, PrefixRange, Rule, Set, Source},
    types::Asn,
};
use ipnet::IpNet;

use super::{
    Pool,
    document::{Found, Section, words},
    sections::{is_name, name_rule},
};

/// Names that mean a built-in policy.
const BUILT_IN: [&str; 4] = ["pools", "blocks", "all", "none"];

/// A prefix list may contain this word for everything inside the pools.
const POOLS: &str = "pools";

const ORIGINS: [(&str, Origin); 3] = [
    ("igp", Origin::Igp),
    ("egp", Origin::Egp),
    ("incomplete", Origin::Incomplete),
];

const SOURCES: [(&str, Source); 4] = [
    ("local", Source::Local),
    ("internal", Source::Internal),
    ("client", Source::Client),
    ("external", Source::External),
];

/// The policies of the file by name.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// `None`: defined, and in error.
    policies: Vec<(String, Option<Arc<Policy>>)>,
}

impl Named {
    pub(super) fn into_policies(self) -> Vec<Arc<Policy>> {
        self.policies
            .into_iter()
            .filter_map(|(_, policy)| policy)
            .collect()
    }

    /// The policy that the value of `key` names: one of the built-in ones or one of the file.
    pub(super) fn choose<T: Clone>(
        &self,
        section: &mut Section<'_, '_, '_>,
        key: &'static str,
        built_in: &[(&str, T)],
        named: impl Fn(Arc<Policy>) -> T,
    ) -> Option<T> {
        let Found { value, span } = section.string(key)?;
        if let Some((_, policy)) = built_in.iter().find(|(word, _)| *word == value) {
            return Some(policy.clone());
        }
        if let Some((_, policy)) = self.policies.iter().find(|(name, _)| name == value) {
            return policy.clone().map(named);
        }
        let names = built_in.iter().map(|(word, _)| *word);
        let known = words(names.chain(self.policies.iter().map(|(name, _)| name.as_str())));
        let reason = format!("there is no policy \"{value}\"; known here: {known}");
        section.error(key, Some(span), reason);
        None
    }
}

pub(super) fn read(sections: Vec<Section<'_, '_, '_>>, pools: &[Found<Pool>]) -> Named {
    let pools: Vec<IpNet> = pools.iter().map(|pool| pool.value.cidr).collect();
    let mut named = Named::default();
    for mut section in sections {
        let name = section.string("name");
        let name = section.required("name", name, "peers choose a policy by it");
        if let Some(Found { value, span }) = &name {
            let reason = if !is_name(value, 63) {
                Some(format!("\"{value}\" is not {}", name_rule(63)))
            } else if BUILT_IN.contains(value) {
                Some(format!("\"{value}\" is the name of a built-in policy"))
            } else if named.policies.iter().any(|(known, _)| known == value) {
                Some(format!(
                    "another policy is named \"{value}\"; names are unique"
                ))
            } else {
                None
            };
            if let Some(reason) = reason {
                section.error("name", Some(span.clone()), reason);
            }
        }
        let rules = section.sections("rule");
        if rules.is_empty() && section.value("rule").is_none() {
            let reason = "is missing; a policy without rules rejects everything, as \"none\" does";
            section.error("rule", None, reason);
        }
        let mut known: Vec<Rule> = Vec::new();
        let mut complete = true;
        for rule in rules {
            match read_rule(rule, &known, &pools) {
                Some(rule) => known.push(rule),
                None => complete = false,
            }
        }
        section.finish();
        if let Some(Found { value, .. }) = name {
            let policy = complete.then(|| Arc::new(Policy::new(value, known)));
            named.policies.push((value.to_owned(), policy));
        }
    }
    named
}

fn read_rule(mut section: Section<'_, '_, '_>, earlier: &[Rule], pools: &[IpNet]) -> Option<Rule> {
    let name = section.string("name");
    let name = section.required("name", name, "it is shown as the reason of a decision");
    if let Some(Found { value, span }) = &name {
        if !is_name(value, 63) {
            let reason = format!("\"{value}\" is not {}", name_rule(63));
            section.error("name", Some(span.clone()), reason);
        } else if earlier.iter().any(|rule| *rule.name == **value) {
            let reason = format!("another rule of this policy is named \"{value}\"");
            section.error("name", Some(span.clone()), reason);
        }
    }
    let mut matches = read_match(section.section("match"), pools);
    let unless = section.section("unless");
    if unless.is_present() {
        matches.push(Match::Not(Box::new(Match::All(read_match(unless, pools)))));
    } else {
        // Makes its keys known.
        read_match(unless, pools);
    }
    let action = section.choice("action", &[("accept", true), ("reject", false)]);
    let action = section.required("action", action, "accept or reject");
    let set = section.section("set");
    if let Some(Found { value: false, .. }) = &action
        && set.is_present()
    {
        let reason = "nothing can be altered in a route that is rejected";
        let span = section.value("set").map(|value| value.span());
        section.error("set", span, reason);
    }
    let sets = read_set(set);
    section.finish();
    Some(Rule {
        name: name?.value.into(),
        matches,
        action: if action?.value {
            Action::Accept(sets)
        } else {
            Action::Reject
        },
    })
}

/// The conditions of a `match` or `unless` table, all of which have to hold.
fn read_match(mut section: Section<'_, '_, '_>, pools: &[IpNet]) -> Vec<Match> {
    let mut matches = Vec::new();
    if let Some(lists) = section.list_with("prefixes", |text| read_prefixes(text, pools)) {
        matches.push(Match::Prefix(PrefixList(lists.concat())));
    }
    let mut any = |list: Option<Vec<Match>>| matches.extend(list.map(Match::Any));
    any(section.list_with("communities", |text| community(text).map(Match::Community)));
    any(section.list_with("large_communities", |text| {
        large_community(text).map(Match::LargeCommunity)
    }));
    any(section.list_with("next_hops", |text| {
        let net = read_net(text)?;
        Ok(Match::NextHop(net))
    }));
    any(section.list_with("sources", |text| word(text, &SOURCES).map(Match::Source)));
    any(section.list_with("origins", |text| word(text, &ORIGINS).map(Match::Origin)));
    read_as_path(section.section("as_path"), &mut matches);
    for (key, condition) in [
        ("default_route", Match::DefaultRoute),
        ("own_block", Match::WithinOriginated),
    ] {
        match section.boolean(key) {
            Some(Found { value: true, .. }) => matches.push(condition),
            Some(Found { value: false, .. }) => matches.push(Match::Not(Box::new(condition))),
            None => {}
        }
    }
    section.finish();
    matches
}

fn read_as_path(mut section: Section<'_, '_, '_>, matches: &mut Vec<Match>) {
    type Condition = fn(Asn) -> AsPathMatch;
    let keys: [(&'static str, Condition); 3] = [
        ("contains", AsPathMatch::Contains),
        ("neighbors", AsPathMatch::From),
        ("origins", AsPathMatch::OriginatedBy),
    ];
    for (key, condition) in keys {
        if let Some(list) = section.integers(key, &(1..=u32::MAX)) {
            let any = list
                .into_iter()
                .map(|asn| Match::AsPath(condition(Asn(asn.value))));
            matches.push(Match::Any(any.collect()));
        }
    }
    let length = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let most = section.integer("max_length", 0..=2047);
    let least = section.integer("min_length", 1..=2047);
    if let (Some(most), Some(least)) = (&most, &least)
        && most.value < least.value
    {
        let reason = format!("is less than min_length, {}", least.value);
        section.error("max_length", Some(most.span.clone()), reason);
    }
    if let Some(Found { value, .. }) = most {
        matches.push(Match::AsPath(AsPathMatch::MaxLength(length(value))));
    }
    if let Some(Found { value, .. }) = least {
        let shorter = Match::AsPath(AsPathMatch::MaxLength(length(value) - 1));
        matches.push(Match::Not(Box::new(shorter)));
    }
    section.finish();
}

/// The alterations, in a fixed order: what is removed first, then what is added.
fn read_set(mut section: Section<'_, '_, '_>) -> Vec<Set> {
    let mut sets = Vec::new();
    if let Some(found) = section.integer("local_pref", 0..=u32::MAX) {
        sets.push(Set::LocalPref(found.value));
    }
    let med = section.integer("med", 0..=u32::MAX);
    if let Some(found) = &med {
        sets.push(Set::Med(Some(found.value)));
    }
    if let Some(Found { value: true, span }) = section.boolean("remove_med") {
        if med.is_some() {
            section.error("remove_med", Some(span), "excludes med");
        }
        sets.push(Set::Med(None));
    }
    if let Some(found) = section.choice("origin", &ORIGINS) {
        sets.push(Set::Origin(found.value));
    }
    if let Some(Found { value: true, .. }) = section.boolean("clear_communities") {
        sets.push(Set::ClearCommunities);
    }
    for list in [
        section.list_with("remove_communities", |text| {
            community(text).map(Set::RemoveCommunity)
        }),
        section.list_with("add_communities", |text| {
            community(text).map(Set::AddCommunity)
        }),
        section.list_with("remove_large_communities", |text| {
            large_community(text).map(Set::RemoveLargeCommunity)
        }),
        section.list_with("add_large_communities", |text| {
            large_community(text).map(Set::AddLargeCommunity)
        }),
    ] {
        sets.extend(list.into_iter().flatten());
    }
    if let Some(Found { value, .. }) = section.integer("prepend", 1..=32) {
        let times = u8::try_from(value).expect("at most 32");
        sets.push(Set::PrependOwn(times));
    }
    section.finish();
    sets
}

fn word<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let allowed = words(choices.iter().map(|(word, _)| *word));
            Err(format!("\"{text}\" is unknown; {allowed} are allowed"))
        }
    }
}

pub(super) fn community(text: &str) -> Result<u32, String> {
    parse_community(text).ok_or_else(|| {
        format!(
            "\"{text}\" is not a community, as \"64512:100\" (two numbers up to 65535) or \
             \"no-export\""
        )
    })
}

pub(super) fn large_community(text: &str) -> Result<[u32; 3], String> {
    parse_large_community(text)
        .ok_or_else(|| format!("\"{text}\" is not a large community, as \"64512:1:2\""))
}

pub(super) fn read_net(text: &str) -> Result<IpNet, String> {
    let net: Option<IpNet> = text.parse().ok().or_else(|| {
        let address: Option<std::net::IpAddr> = text.parse().ok();
        address.map(IpNet::from)
    });
    match net {
        None => Err(format!("\"{text}\" is not an IP prefix, as \"10.0.0.0/8\"")),
        Some(net) if net.trunc() != net => Err(format!(
            "\"{text}\" has host bits set; write \"{}\"",
            net.trunc()
        )),
        Some(net) => Ok(net),
    }
}

/// `PREFIX`, `PREFIX ge N`, `PREFIX le N`, `PREFIX ge N le M`, or `pools`.
fn read_prefixes(text: &str, pools: &[IpNet]) -> Result<Vec<PrefixRange>, String> {
    if text == POOLS {
        return Ok(pools.iter().copied().map(PrefixRange::or_longer).collect());
    }
    let form = || {
        format!(
            "\"{text}\" is not \"{POOLS}\" or a prefix with bounds on the length, as \
             \"10.0.0.0/8\", \"10.0.0.0/8 le 24\" or \"10.0.0.0/8 ge 16 le 24\""
        )
    };
    let mut parts = text.split_whitespace();
    let prefix = read_net(parts.next().ok_or_else(form)?).map_err(|reason| {
        if reason.contains("host bits") {
            reason
        } else {
            form()
        }
    })?;
    let (mut least, mut most) = (None, None);
    while let Some(bound) = parts.next() {
        let place = match bound {
            "ge" if least.is_none() && most.is_none() => &mut least,
            "le" if most.is_none() => &mut most,
            _ => return Err(form()),
        };
        let length: u8 = parts
            .next()
            .and_then(|length| length.parse().ok())
            .ok_or_else(form)?;
        *place = Some(length);
    }
    let own = prefix.prefix_len();
    let (low, high) = match (least, most) {
        (None, None) => (own, own),
        (None, Some(most)) => (own, most),
        (Some(least), None) => (least, prefix.max_prefix_len()),
        (Some(least), Some(most)) => (least, most),
    };
    let range = PrefixRange::between(prefix, low, high).ok_or_else(|| {
        format!(
            "\"{text}\" can match nothing; lengths from {own} to {} are possible, and ge is not \
             above le",
            prefix.max_prefix_len()
        )
    })?;
    Ok(vec![range])
}
