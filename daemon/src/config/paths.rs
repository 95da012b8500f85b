//! How many paths of a prefix go over a session, and with which next hops: `add_path` and
//! `extended_next_hop` of `[[bgp.peer]]`.

use bgp::speaker::config::ADD_PATH_ALL;
use toml::de::DeValue;

use super::document::{Found, Section};

/// RFC 7911.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AddPath {
    pub(super) receive: bool,
    /// 0: none.
    pub(super) send: u16,
}

const WORDS: [(&str, AddPath); 4] = [
    (
        "off",
        AddPath {
            receive: false,
            send: 0,
        },
    ),
    (
        "receive",
        AddPath {
            receive: true,
            send: 0,
        },
    ),
    (
        "send",
        AddPath {
            receive: false,
            send: ADD_PATH_ALL,
        },
    ),
    (
        "both",
        AddPath {
            receive: true,
            send: ADD_PATH_ALL,
        },
    ),
];

/// A word, or a table such as `{ send = 4, receive = true }`.
pub(super) fn read_add_path(section: &mut Section<'_, '_, '_>) -> AddPath {
    let Some(value) = section.value("add_path") else {
        return AddPath::default();
    };
    if !value.get_ref().is_table() {
        let found = section.choice("add_path", &WORDS);
        return found.map_or(AddPath::default(), |found| found.value);
    }
    let mut table = section.section("add_path");
    let receive = table.boolean("receive").is_some_and(|found| found.value);
    let send = match table.value("send").map(|value| value.get_ref()) {
        None => 0,
        Some(DeValue::String(_)) => {
            let all = table.choice("send", &[("all", ADD_PATH_ALL)]);
            all.map_or(0, |found| found.value)
        }
        Some(_) => table
            .integer("send", 1..=255)
            .map_or(0, |Found { value, .. }| {
                u16::try_from(value).expect("at most 255")
            }),
    };
    table.finish();
    AddPath { receive, send }
}
