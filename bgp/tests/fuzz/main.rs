//! The fuzz targets as an ordinary test: the corpus, and seeded mutations of it. Coverage-guided
//! runs of the same functions are programs under `bgp/fuzz`; `./dev fuzz` runs those.
//!
//! `BGP_FUZZ_MUTATIONS` sets how many mutations each target gets.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod targets;

use std::{
    collections::BTreeSet,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// One input a line, in hexadecimal.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = directory().join("corpus").join(format!("{target}.hex"));
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let octets = line.as_bytes().chunks(2);
            let octet = |pair: &[u8]| {
                let pair = std::str::from_utf8(pair).ok()?;
                u8::from_str_radix(pair, 16).ok()
            };
            octets
                .map(|pair| octet(pair).unwrap_or_else(|| panic!("{target}: {line}")))
                .collect()
        })
        .collect()
}

fn run(name: &str, target: fn(&[u8]), input: &[u8]) {
    if catch_unwind(|| target(input)).is_err() {
        let hex: String = input.iter().map(|octet| format!("{octet:02x}")).collect();
        panic!("target {name}, input {hex}");
    }
}

fn mutate(random: &mut fastrand::Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = random.choice(corpus).cloned().unwrap_or_default();
    for _ in 0..=random.usize(..4) {
        let at = random.usize(..=input.len());
        match random.u8(..8) {
            0 => input.insert(at, random.u8(..)),
            1 if at < input.len() => drop(input.remove(at)),
            2 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            3 if at < input.len() => input[at] = random.u8(..),
            4 if at < input.len() => input[at] = *random.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap(),
            5 => input.truncate(at),
            6 => {
                // A piece of another goes in, or one of its own once more.
                let other = random.choice(corpus).unwrap();
                let from = random.usize(..=other.len());
                let to = random.usize(from..=other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ if at + 1 < input.len() => input.swap(at, at + 1),
            _ => {}
        }
    }
    input
}

fn check(name: &str) {
    let (_, target) = *targets::ALL
        .iter()
        .find(|(other, _)| *other == name)
        .unwrap();
    let corpus = corpus(name);
    assert!(!corpus.is_empty());
    for input in &corpus {
        run(name, target, input);
    }
    let mutations = std::env::var("BGP_FUZZ_MUTATIONS")
        .map_or(20_000, |count| count.parse().expect("a number"));
    let mut random = fastrand::Rng::with_seed(0x00f0_22ed);
    for _ in 0..mutations {
        run(name, target, &mutate(&mut random, &corpus));
    }
}

#[test]
fn streams_of_messages() {
    check("frame");
}

#[test]
fn opens() {
    check("open");
}

#[test]
fn updates() {
    check("decode");
}

#[test]
fn notifications() {
    check("notification");
}

#[test]
fn route_refreshes() {
    check("refresh");
}

#[test]
fn whole_sessions() {
    check("session");
}

/// Neither a corpus without a target, nor a target without a program or a corpus.
#[test]
fn every_target_has_a_program_and_a_corpus() {
    let names: BTreeSet<String> = targets::ALL
        .iter()
        .map(|(name, _)| (*name).into())
        .collect();
    let listed = |part: &str, suffix: &str| -> BTreeSet<String> {
        fs::read_dir(directory().join(part))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_suffix(suffix).unwrap_or(&name).to_owned())
            .collect()
    };
    assert_eq!(listed("corpus", ".hex"), names);
    assert_eq!(listed("fuzz_targets", ".rs"), names);
    let size: u64 = names
        .iter()
        .flat_map(|name| corpus(name))
        .map(|input| input.len() as u64)
        .sum();
    assert!(size < 100_000, "the corpus has {size} octets");
}
