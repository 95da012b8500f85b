//! Import and export policy: named rules, tried in order, each with matches and an action.
//!
//! A policy decides on one route at a time and returns which rule decided, so that the reason for
//! a rejected or altered route can always be named. The built-in policies are ordinary policies;
//! RFC 8212 (no policy, no routes on external sessions) is satisfied because a peer always has one.
//!
//! An import policy may also honour BLACKHOLE (RFC 7999), which is off unless asked for. Then a route
//! with that community leads nowhere: packets to it are dropped. It is taken when the policy admits
//! its prefix, or has nothing to say about it and admits a less specific one with the same attributes
//! (§3.3: what the neighbour may advertise, it may have dropped in parts, up to single addresses), the
//! default route aside; and never when the prefix is originated here or lies inside one that is.
//!
//! Matches within a rule are joined by "and"; alternatives are several rules or [`Match::Any`].
//! What no rule decides is rejected.

use std::{fmt, sync::Arc};

use ipnet::IpNet;

use crate::{
    attributes::{AsPath, Attributes, Origin},
    types::Asn,
};

#[cfg(test)]
mod tests;

/// A named list of rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    name: Arc<str>,
    rules: Vec<Rule>,
    blackhole: bool,
}

/// One rule: when all matches hold, the action is taken and no later rule is tried.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Shown to people as the reason; unique within its policy.
    pub name: Arc<str>,
    /// All must hold; none means always.
    pub matches: Vec<Match>,
    pub action: Action,
}

/// What to do with a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Take the route, altered in this order.
    Accept(Vec<Set>),
    Reject,
}

/// A condition on a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// The prefix is in the list.
    Prefix(PrefixList),
    /// The prefix is the default route of its family.
    DefaultRoute,
    /// The prefix equals one that this speaker originates, or lies inside one.
    WithinOriginated,
    Source(Source),
    Community(u32),
    LargeCommunity([u32; 3]),
    AsPath(AsPathMatch),
    Origin(Origin),
    /// The next hop lies inside.
    NextHop(IpNet),
    Not(Box<Match>),
    /// At least one holds; an empty list never does.
    Any(Vec<Match>),
    /// Every one holds; an empty list always does.
    All(Vec<Match>),
}

/// Where a route came from, seen from this speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Originated here.
    Local,
    /// From an internal peer that is not a route reflector client.
    Internal,
    /// From a route reflector client.
    Client,
    External,
}

/// A condition on the AS path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AsPathMatch {
    /// Nothing in it: a route of our own AS.
    Empty,
    /// The number stands anywhere in it.
    Contains(Asn),
    /// The leftmost number: the neighbouring AS.
    From(Asn),
    /// The rightmost number.
    OriginatedBy(Asn),
    /// Not longer than this, counted as the decision process counts.
    MaxLength(usize),
}

/// An alteration of the attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Set {
    LocalPref(u32),
    /// `None` removes it.
    Med(Option<u32>),
    AddCommunity(u32),
    RemoveCommunity(u32),
    ClearCommunities,
    AddLargeCommunity([u32; 3]),
    RemoveLargeCommunity([u32; 3]),
    /// Prepend the number so many times.
    Prepend(Asn, u8),
    /// Prepend our own number, as the peer knows it, so many times.
    PrependOwn(u8),
    Origin(Origin),
}

/// Prefixes with bounds on the length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PrefixList(pub Vec<PrefixRange>);

/// Matches a prefix that lies inside `prefix` and whose length is within the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixRange {
    pub prefix: IpNet,
    pub min_length: u8,
    pub max_length: u8,
}

impl PrefixRange {
    /// Exactly this prefix.
    pub fn exact(prefix: IpNet) -> Self {
        let length = prefix.prefix_len();
        Self {
            prefix: prefix.trunc(),
            min_length: length,
            max_length: length,
        }
    }

    /// This prefix and everything inside.
    pub fn or_longer(prefix: IpNet) -> Self {
        Self {
            prefix: prefix.trunc(),
            min_length: prefix.prefix_len(),
            max_length: prefix.max_prefix_len(),
        }
    }

    /// Lengths from `min_length` ("ge") to `max_length` ("le"); `None` when no prefix could match.
    pub fn between(prefix: IpNet, min_length: u8, max_length: u8) -> Option<Self> {
        let fits = min_length >= prefix.prefix_len()
            && min_length <= max_length
            && max_length <= prefix.max_prefix_len();
        fits.then_some(Self {
            prefix: prefix.trunc(),
            min_length,
            max_length,
        })
    }

    pub fn matches(&self, prefix: &IpNet) -> bool {
        let length = prefix.prefix_len();
        (self.min_length..=self.max_length).contains(&length)
            && match (&self.prefix, prefix) {
                (IpNet::V4(outer), IpNet::V4(inner)) => outer.contains(inner),
                (IpNet::V6(outer), IpNet::V6(inner)) => outer.contains(inner),
                _ => false,
            }
    }
}

impl PrefixList {
    pub fn matches(&self, prefix: &IpNet) -> bool {
        self.0.iter().any(|range| range.matches(prefix))
    }
}

/// What a policy looks at.
#[derive(Clone, Copy, Debug)]
pub struct RouteFacts<'a> {
    pub prefix: &'a IpNet,
    pub attributes: &'a Attributes,
    pub source: Source,
    /// The prefix equals one that this speaker originates, or lies inside one.
    pub within_originated: bool,
}

/// What a policy said: which rule decided, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// `None`: no rule matched, which rejects.
    pub rule: Option<usize>,
    /// `None` rejects; an empty slice accepts unaltered.
    pub accept: Option<&'a [Set]>,
}

impl Policy {
    /// The rules are tried in order.
    pub fn new(name: &str, rules: Vec<Rule>) -> Self {
        Self {
            name: name.into(),
            rules,
            blackhole: false,
        }
    }

    /// The same policy for an import that honours BLACKHOLE (RFC 7999).
    pub fn honouring_blackhole(mut self) -> Self {
        self.blackhole = true;
        self
    }

    pub fn honours_blackhole(&self) -> bool {
        self.blackhole
    }

    /// Import: only prefixes inside the pools; never a default route, and nothing that equals or
    /// lies inside what this speaker originates itself.
    pub fn import_pools(pools: &[IpNet]) -> Self {
        let ranges = pools
            .iter()
            .map(|pool| PrefixRange::or_longer(*pool))
            .collect();
        Self::new(
            "pools",
            vec![
                Rule::reject("default-route", vec![Match::DefaultRoute]),
                Rule::reject("own-block", vec![Match::WithinOriginated]),
                Rule::accept("inside-pool", vec![Match::Prefix(PrefixList(ranges))]),
                Rule::reject("outside-pools", vec![]),
            ],
        )
    }

    /// Export: what this speaker originates; a route reflector also passes on its clients' routes.
    pub fn export_blocks() -> Self {
        Self::new(
            "blocks",
            vec![
                Rule::accept("originated", vec![Match::Source(Source::Local)]),
                Rule::accept("from-client", vec![Match::Source(Source::Client)]),
                Rule::reject("not-originated-here", vec![]),
            ],
        )
    }

    /// Everything.
    pub fn all() -> Self {
        Self::new("all", vec![Rule::accept("all", vec![])])
    }

    /// Nothing.
    pub fn none() -> Self {
        Self::new("none", vec![Rule::reject("none", vec![])])
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The first rule whose matches all hold.
    pub fn decide(&self, route: RouteFacts<'_>) -> Decision<'_> {
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.matches.iter().all(|condition| condition.holds(route)) {
                let accept = match &rule.action {
                    Action::Accept(sets) => Some(sets.as_slice()),
                    Action::Reject => None,
                };
                return Decision {
                    rule: Some(index),
                    accept,
                };
            }
        }
        Decision {
            rule: None,
            accept: None,
        }
    }

    /// What is said of a BLACKHOLE: as [`decide`](Self::decide); but when no rule is about the prefix
    /// (none matched, or one without conditions), what admits the longest of those around it.
    pub fn decide_blackhole(&self, route: RouteFacts<'_>) -> Decision<'_> {
        let exact = self.decide(route);
        let by_name = exact
            .rule
            .and_then(|rule| self.rules.get(rule))
            .is_some_and(|rule| !rule.matches.is_empty());
        if exact.accept.is_some() || by_name {
            return exact;
        }
        // RFC 7999 §3.3: covered by an equal or shorter prefix that the neighbour may advertise.
        let around = (1..route.prefix.prefix_len()).rev().filter_map(|length| {
            let prefix = IpNet::new(route.prefix.addr(), length).ok()?.trunc();
            let decision = self.decide(RouteFacts {
                prefix: &prefix,
                ..route
            });
            decision.accept.map(|_| decision)
        });
        around.into_iter().next().unwrap_or(exact)
    }

    /// Whether the answer can depend on what this speaker originates.
    pub fn looks_at_originated(&self) -> bool {
        self.blackhole
            || self
                .rules
                .iter()
                .flat_map(|rule| &rule.matches)
                .any(Match::looks_at_originated)
    }

    /// For a person: policy and rule, as in `pools/outside-pools`.
    pub fn describe(&self, rule: Option<usize>) -> String {
        match rule.and_then(|index| self.rules.get(index)) {
            Some(rule) if *rule.name == *self.name => self.name.to_string(),
            Some(rule) => format!("{}/{}", self.name, rule.name),
            None => format!("{}/no rule matched", self.name),
        }
    }
}

impl Rule {
    pub fn accept(name: &str, matches: Vec<Match>) -> Self {
        Self {
            name: name.into(),
            matches,
            action: Action::Accept(Vec::new()),
        }
    }

    pub fn reject(name: &str, matches: Vec<Match>) -> Self {
        Self {
            name: name.into(),
            matches,
            action: Action::Reject,
        }
    }
}

impl Match {
    fn holds(&self, route: RouteFacts<'_>) -> bool {
        match self {
            Match::Prefix(list) => list.matches(route.prefix),
            Match::DefaultRoute => route.prefix.prefix_len() == 0,
            Match::WithinOriginated => route.within_originated,
            Match::Source(source) => route.source == *source,
            Match::Community(value) => route.attributes.communities.contains(value),
            Match::LargeCommunity(value) => route.attributes.large_communities.contains(value),
            Match::AsPath(condition) => condition.holds(&route.attributes.as_path),
            Match::Origin(origin) => route.attributes.origin == *origin,
            Match::NextHop(net) => net.contains(&route.attributes.next_hop.address),
            Match::Not(inner) => !inner.holds(route),
            Match::Any(inner) => inner.iter().any(|condition| condition.holds(route)),
            Match::All(inner) => inner.iter().all(|condition| condition.holds(route)),
        }
    }

    fn looks_at_originated(&self) -> bool {
        match self {
            Match::WithinOriginated => true,
            Match::Not(inner) => inner.looks_at_originated(),
            Match::Any(inner) | Match::All(inner) => inner.iter().any(Self::looks_at_originated),
            _ => false,
        }
    }
}

impl AsPathMatch {
    fn holds(&self, path: &AsPath) -> bool {
        match self {
            AsPathMatch::Empty => path.is_empty(),
            AsPathMatch::Contains(asn) => path.contains(*asn),
            AsPathMatch::From(asn) => path.neighbor() == Some(*asn),
            AsPathMatch::OriginatedBy(asn) => path.origin() == Some(*asn),
            AsPathMatch::MaxLength(length) => path.path_length() <= *length,
        }
    }
}

/// Applies alterations in order. `own`: our number on the session.
pub fn apply(sets: &[Set], attributes: &mut Attributes, own: Asn) {
    for set in sets {
        match set {
            Set::LocalPref(value) => attributes.local_pref = Some(*value),
            Set::Med(value) => attributes.med = *value,
            Set::AddCommunity(value) => {
                if !attributes.communities.contains(value) {
                    attributes.communities.push(*value);
                }
            }
            Set::RemoveCommunity(value) => attributes.communities.retain(|have| have != value),
            Set::ClearCommunities => attributes.communities.clear(),
            Set::AddLargeCommunity(value) => {
                if !attributes.large_communities.contains(value) {
                    attributes.large_communities.push(*value);
                }
            }
            Set::RemoveLargeCommunity(value) => {
                attributes.large_communities.retain(|have| have != value);
            }
            Set::Prepend(asn, times) => {
                attributes.as_path.prepend(*asn, usize::from(*times));
            }
            Set::PrependOwn(times) => attributes.as_path.prepend(own, usize::from(*times)),
            Set::Origin(origin) => attributes.origin = *origin,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
