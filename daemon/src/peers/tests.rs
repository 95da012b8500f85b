#![allow(clippy::unwrap_used)]

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use bgp::{
    driver::{Handle, Updates},
    speaker::status::{PeerState, PeerStatus},
};

use super::*;
use crate::{config::Config, runtime::setup};

const PATIENCE: Duration = Duration::from_secs(10);

/// A manager with a real speaker that listens on the loopback device only.
struct Bench {
    directory: tempfile::TempDir,
    handle: PeersHandle,
    speaker: Handle,
    _updates: Updates,
}

/// `[bgp]` and what follows; the rest is as every test has it.
fn text(directory: &Path, bgp: &str) -> String {
    format!(
        "[node]\nname = \"n\"\naddress = \"192.0.2.1\"\nstate_dir = {directory:?}\n\
         [bgp]\nasn = 64512\nlisten = [\"127.0.0.1:0\"]\n{bgp}\n"
    )
}

fn peer(name: &str, address: &str, more: &str) -> String {
    format!(
        "[[bgp.peer]]\nname = {name:?}\naddress = {address:?}\nasn = 64513\npassive = true\n{more}\n"
    )
}

impl Bench {
    fn start(bgp: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), bgp)
    }

    /// As after a restart, where the directory has been used before.
    fn start_in(directory: tempfile::TempDir, bgp: &str) -> Self {
        let content = text(directory.path(), bgp);
        let file = directory.path().join("agentd.toml");
        fs::write(&file, &content).unwrap();
        let mut config = Config::load(&file).unwrap();
        let manager = Manager::recover(&mut config, content).unwrap();
        let bgp = config.bgp.as_ref().unwrap();
        let router_id = "192.0.2.1".parse().unwrap();
        let mut speaker = setup::speaker(bgp, &[], router_id, None).unwrap();
        manager.mark_shutdowns(&mut speaker);
        let (speaker, updates, _) = bgp::driver::spawn(speaker).unwrap();
        let (handle, ends) = PeersHandle::new();
        tokio::spawn(manager.run(Some(speaker.clone()), ends));
        Self {
            directory,
            handle,
            speaker,
            _updates: updates,
        }
    }

    async fn restart(self, bgp: &str) -> Self {
        let directory = self.directory;
        self.speaker.shutdown("").await;
        Self::start_in(directory, bgp)
    }

    fn write(&self, bgp: &str) {
        let file = self.directory.path().join("agentd.toml");
        fs::write(file, text(self.directory.path(), bgp)).unwrap();
    }

    async fn reload(&self, bgp: &str) -> Vec<(String, Effect, String)> {
        self.write(bgp);
        let report = self.handle.reload().await.unwrap().unwrap();
        assert_eq!(report.needs_restart, Vec::<String>::new());
        let changes = report.changes.into_iter();
        changes
            .map(|change| (change.subject, change.effect, change.text))
            .collect()
    }

    async fn peer(&self, name: &str) -> Option<PeerStatus> {
        let peers = self.speaker.peers().await;
        peers.into_iter().find(|peer| peer.name == name)
    }

    async fn names(&self) -> Vec<String> {
        let peers = self.speaker.peers().await;
        let ranges = self.speaker.ranges().await;
        let names = peers.into_iter().map(|peer| peer.name);
        names
            .chain(ranges.into_iter().map(|range| range.name))
            .collect()
    }
}

fn spec(name: &str, address: &str) -> PeerSpec {
    PeerSpec {
        name: name.into(),
        address: address.into(),
        asns: vec![64513],
        passive: true,
        ..PeerSpec::default()
    }
}

#[test]
fn the_nearest_name_is_the_one_that_was_meant() {
    let names = ["tor-a", "tor-b", "leaves", "spine-1"];
    for (wanted, expected) in [
        ("tor-1", Some("tor-a")),
        ("TOR-B", Some("tor-b")),
        ("leave", Some("leaves")),
        ("tro-b", Some("tor-b")),
        ("laeves", Some("leaves")),
        ("spin", Some("spine-1")),
        ("gateway", None),
        ("", None),
    ] {
        let found = nearest(wanted, names.into_iter()).filter(|_| !wanted.is_empty());
        assert_eq!(found, expected, "{wanted}");
    }
}

#[tokio::test]
async fn a_reload_adds_removes_and_changes_peers_and_leaves_the_others_alone() {
    let one = peer("one", "127.0.0.11", "");
    let two = peer("two", "127.0.0.12", "");
    let bench = Bench::start(&format!("{one}{two}"));
    assert_eq!(bench.reload(&format!("{one}{two}")).await, []);
    let changed = peer("two", "127.0.0.12", "max_prefixes = 7\nhold_time = \"30s\"");
    let three = peer("three", "127.0.0.13", "");
    let range = "[[bgp.peer]]\nname = \"r\"\nrange = \"127.0.1.0/24\"\nasn = \"external\"\n";
    let mut changes = bench.reload(&format!("{changed}{three}{range}")).await;
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        changes,
        [
            ("peer one".into(), Effect::Removed, String::new()),
            ("peer three".into(), Effect::Added, String::new()),
            (
                "peer two".into(),
                Effect::NextSession,
                "max_prefixes, max_prefixes_warning, hold_time".into()
            ),
            ("range r".into(), Effect::Added, String::new()),
        ]
    );
    assert_eq!(bench.names().await, ["two", "three", "r"]);
    assert_eq!(bench.peer("two").await.unwrap().max_prefixes, Some(7));
    let changes = bench.reload(&format!("{changed}{three}")).await;
    assert_eq!(
        changes,
        [("range r".into(), Effect::Removed, String::new())]
    );
}

#[tokio::test]
async fn peers_can_exchange_their_addresses() {
    let both = |a, b| format!("{}{}", peer("one", a, ""), peer("two", b, ""));
    let bench = Bench::start(&both("127.0.0.11", "127.0.0.12"));
    let changes = bench.reload(&both("127.0.0.12", "127.0.0.11")).await;
    assert_eq!(changes.len(), 2, "{changes:?}");
    for (_, effect, text) in changes {
        assert_eq!((effect, text.as_str()), (Effect::Reset, "address"));
    }
    let one = bench.peer("one").await.unwrap();
    assert_eq!(
        one.address,
        "127.0.0.12".parse::<std::net::IpAddr>().unwrap()
    );
}

#[tokio::test]
async fn a_file_that_is_wrong_changes_nothing_at_all() {
    let one = peer("one", "127.0.0.11", "");
    let bench = Bench::start(&one);
    for (wrong, said) in [
        (
            format!("{one}{}", peer("two", "127.0.0.12", "hold_time = \"1s\"")),
            "hold_time",
        ),
        (
            format!(
                "{one}{}",
                peer("two", "127.0.0.12", "password_file = \"missing\"")
            ),
            "missing cannot be read",
        ),
        (
            format!("{one}{}", peer("one", "127.0.0.12", "")),
            "names are unique",
        ),
        ("asn = ".into(), "agentd.toml"),
    ] {
        bench.write(&wrong);
        let errors = bench.handle.reload().await.unwrap().unwrap_err();
        assert!(errors.to_string().contains(said), "{errors}");
        assert_eq!(bench.names().await, ["one"]);
    }
    assert_eq!(bench.reload(&one).await, []);
}

#[tokio::test]
async fn a_password_that_has_become_empty_or_gone_is_an_error_and_not_no_password() {
    let with_key = peer("one", "127.0.0.11", "password_file = \"key\"");
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    fs::write(&key, "first\n").unwrap();
    let bench = Bench::start_in(directory, &with_key);
    fs::write(&key, "\n").unwrap();
    let empty = bench.handle.reload().await.unwrap().unwrap_err();
    assert!(empty.to_string().contains("is empty"), "{empty}");
    fs::remove_file(&key).unwrap();
    bench.handle.reload().await.unwrap().unwrap_err();
    assert!(
        bench.peer("one").await.unwrap().password,
        "the old one counts"
    );
    fs::write(&key, "second\n").unwrap();
    let change = ("peer one".into(), Effect::Live, "password".into());
    assert_eq!(bench.reload(&with_key).await, [change]);
    let without = peer("one", "127.0.0.11", "");
    let change = ("peer one".into(), Effect::Reset, "password".into());
    assert_eq!(bench.reload(&without).await, [change]);
    assert!(!bench.peer("one").await.unwrap().password);
}

#[tokio::test]
async fn what_needs_a_restart_is_named() {
    let bench = Bench::start("");
    let content = text(
        bench.directory.path(),
        "router_id = \"192.0.2.7\"\n[log]\nlevel = \"debug\"",
    )
    .replace("asn = 64512", "asn = 64999");
    fs::write(bench.directory.path().join("agentd.toml"), content).unwrap();
    let report = bench.handle.reload().await.unwrap().unwrap();
    assert_eq!(report.needs_restart, ["bgp.asn", "bgp.router_id", "log"]);
}

#[tokio::test]
async fn peers_of_the_api_are_kept_over_restarts_until_they_are_removed() {
    let one = peer("one", "127.0.0.11", "");
    let bench = Bench::start(&one);
    assert!(bench.handle.add(spec("api", "127.0.0.21")).await.unwrap());
    assert!(
        !bench.handle.add(spec("api", "127.0.0.21")).await.unwrap(),
        "repeated"
    );
    let mut range = spec("leaves", "");
    range.range = "127.0.2.0/24".into();
    range.passive = false;
    assert!(bench.handle.add(range).await.unwrap());
    assert_eq!(bench.names().await, ["one", "api", "leaves"]);
    assert_eq!(bench.reload(&one).await, [], "a reload leaves them alone");
    let bench = bench.restart(&one).await;
    assert_eq!(bench.names().await, ["one", "api", "leaves"]);
    assert_eq!(bench.handle.facts().added, ["api", "leaves"]);
    assert!(bench.handle.remove("api".into()).await.unwrap());
    assert!(
        !bench.handle.remove("api".into()).await.unwrap(),
        "repeated"
    );
    assert!(bench.handle.remove("leaves".into()).await.unwrap());
    assert_eq!(bench.names().await, ["one"]);
    let bench = bench.restart(&one).await;
    assert_eq!(bench.names().await, ["one"]);
}

#[tokio::test]
async fn peers_that_cannot_be_added_are_refused_with_the_field() {
    let bench = Bench::start(&peer("one", "127.0.0.11", ""));
    let change = |edit: fn(&mut PeerSpec)| {
        let mut spec = spec("two", "127.0.0.12");
        edit(&mut spec);
        spec
    };
    for (spec, expected) in [
        (change(|spec| spec.address.clear()), "peer.address"),
        (
            change(|spec| spec.address = "127.0.0.11".into()),
            "peer.address",
        ),
        (change(|spec| spec.asns = vec![64513, 64512]), "peer.asn[1]"),
        (
            change(|spec| spec.password_file = "/no/such/file".into()),
            "peer.password_file",
        ),
        (
            change(|spec| spec.password_file = "relative".into()),
            "peer.password_file",
        ),
        (
            change(|spec| spec.import = "no-such-policy".into()),
            "peer.import",
        ),
        (
            change(|spec| spec.name = "a b\"\n[log]".into()),
            "peer.name",
        ),
        (
            change(|spec| {
                spec.hold_time = Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                })
            }),
            "peer.hold_time",
        ),
    ] {
        match bench.handle.add(spec).await.unwrap_err() {
            Error::Invalid { field, .. } | Error::InvalidPeer { field, .. } => {
                assert_eq!(field, expected);
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    let again = bench
        .handle
        .add(spec("one", "127.0.0.11"))
        .await
        .unwrap_err();
    assert!(matches!(again, Error::PeerExists { .. }), "{again:?}");
    let of_file = bench.handle.remove("one".into()).await.unwrap_err();
    assert!(of_file.to_string().contains("agentd.toml"), "{of_file}");
    assert_eq!(bench.names().await, ["one"]);
    let unknown = bench
        .handle
        .reset("oen".into(), Admin::ResetHard)
        .await
        .unwrap_err();
    assert!(
        unknown.to_string().contains("did you mean \"one\"?"),
        "{unknown}"
    );
}

#[tokio::test]
async fn a_shutdown_lasts_over_restarts_and_reloads_until_the_peer_is_enabled() {
    let one = peer("one", "127.0.0.11", "");
    let bench = Bench::start(&one);
    bench
        .handle
        .shutdown("one".into(), "maintenance".into())
        .await
        .unwrap();
    assert_eq!(bench.peer("one").await.unwrap().state, PeerState::Idle);
    let edited = peer("one", "127.0.0.11", "ttl_security = 1");
    bench.reload(&edited).await;
    let status = bench.peer("one").await.unwrap();
    assert_eq!(
        (status.state, status.ttl_security),
        (PeerState::Idle, Some(1))
    );
    let bench = bench.restart(&edited).await;
    let status = bench.peer("one").await.unwrap();
    assert_eq!(status.state, PeerState::Idle);
    assert_eq!(status.reason, "administratively shut down");
    let facts = tokio::time::timeout(PATIENCE, async {
        while bench.handle.facts().shutdown.is_empty() {
            tokio::task::yield_now().await;
        }
        bench.handle.facts()
    })
    .await
    .unwrap();
    assert_eq!(facts.shutdown[0].text, "maintenance");
    bench.handle.enable("one".into()).await.unwrap();
    assert_eq!(bench.peer("one").await.unwrap().state, PeerState::Active);
    let bench = bench.restart(&edited).await;
    assert_eq!(bench.peer("one").await.unwrap().state, PeerState::Active);
    // One that is gone is forgotten with its shutdown.
    bench
        .handle
        .shutdown("one".into(), String::new())
        .await
        .unwrap();
    bench.reload("").await;
    bench.reload(&edited).await;
    assert_eq!(bench.peer("one").await.unwrap().state, PeerState::Active);
}

#[test]
fn a_damaged_file_of_peers_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    for content in [
        "{",
        "{\"version\": 2, \"shutdown\": {}, \"added\": []}",
        "{\"version\": 1}",
    ] {
        fs::write(directory.path().join("peers.json"), content).unwrap();
        let error = saved::Saved::load(directory.path()).unwrap_err();
        assert!(
            error.to_string().contains("does not start without it"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn watchers_hear_of_changes_and_of_peers_that_are_gone() {
    let (handle, _ends) = PeersHandle::new();
    let mut watch = handle.watch();
    let status = PeerStatus::idle(
        bgp::types::PeerId(1),
        "one",
        "127.0.0.1"
            .parse::<SocketAddr>()
            .map_or("127.0.0.1".parse().unwrap(), |a| a.ip()),
        std::time::Instant::now(),
    );
    handle.publish(|| PeerEvent::Changed(Box::new(status)));
    handle.publish(|| PeerEvent::Gone("one".into()));
    assert!(matches!(watch.recv().await, Ok(PeerEvent::Changed(_))));
    assert!(matches!(watch.recv().await, Ok(PeerEvent::Gone(name)) if name == "one"));
}

#[tokio::test]
async fn blackholes_are_asked_for_by_peer_in_the_file_and_over_the_api() {
    let bench = Bench::start(&peer("one", "127.0.0.11", ""));
    let honours = async |name: &str| {
        let peer = bench.peer(name).await.expect("a peer");
        peer.blackhole
    };
    assert!(!honours("one").await);
    let asked = PeerSpec {
        blackhole: true,
        ..spec("two", "127.0.0.12")
    };
    bench.handle.add(asked).await.expect("a peer");
    assert!(honours("two").await && !honours("one").await);
    let changed = peer("one", "127.0.0.11", "blackhole = true");
    assert_eq!(
        bench.reload(&changed).await,
        [("peer one".into(), Effect::Live, "blackhole".into())]
    );
    assert!(honours("one").await && honours("two").await);
}
