//! A real etcd: one member or three, each in a namespace of its own, with or without TLS and
//! passwords.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::netns::{Netns, run};
use super::process::Process;
use super::{Lab, lock};

/// How long a cluster may take to have a leader.
const START: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Etcd {
    lab: Lab,
    members: Vec<Member>,
    tls: Option<Certificates>,
    login: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Member {
    name: String,
    address: String,
    namespace: Netns,
    // A mutex: tests stop and start members through a shared handle.
    process: Mutex<Option<Arc<Process>>>,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// An authority of its own, and one certificate for servers and clients at these addresses.
    pub fn make(lab: &Lab, name: &str, addresses: &[String]) -> Result<Self> {
        let directory = lab.directory().join(name);
        std::fs::create_dir_all(&directory)?;
        let file = |name: &str| directory.join(name);
        let openssl = |arguments: &[&str]| {
            run(Command::new("openssl")
                .args(arguments)
                .current_dir(&directory))
        };
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        let ca = [
            "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem",
        ];
        openssl(&[&["req"], &key[..], &ca[..]].concat())?;
        let request = [
            "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr",
        ];
        openssl(&[&["req"], &key[..], &request[..]].concat())?;
        let names: Vec<String> = addresses
            .iter()
            .map(|address| format!("IP:{address}"))
            .collect();
        let extensions = format!(
            "subjectAltName=IP:127.0.0.1,{}\nextendedKeyUsage=serverAuth,clientAuth\n",
            names.join(",")
        );
        std::fs::write(file("extensions"), extensions)?;
        openssl(&[
            "x509",
            "-req",
            "-in",
            "node.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "extensions",
            "-out",
            "node.pem",
        ])?;
        Ok(Self {
            ca: file("ca.pem"),
            cert: file("node.pem"),
            key: file("node.key"),
        })
    }
}

impl Etcd {
    /// Members in these namespaces, at these addresses, which must be set. Not started yet.
    pub fn new(lab: &Lab, places: &[(Netns, String)], with_tls: bool) -> Result<Self> {
        let addresses: Vec<String> = places.iter().map(|(_, address)| address.clone()).collect();
        let tls = with_tls
            .then(|| Certificates::make(lab, "etcd-tls", &addresses))
            .transpose()?;
        let members = places
            .iter()
            .enumerate()
            .map(|(number, (namespace, address))| Member {
                name: format!("etcd-{}", number + 1),
                address: address.clone(),
                namespace: namespace.clone(),
                process: Mutex::default(),
            });
        Ok(Self {
            lab: lab.clone(),
            members: members.collect(),
            tls,
            login: Mutex::default(),
        })
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub fn endpoints(&self) -> Vec<String> {
        let url = |member: &Member| format!("{}://{}:2379", self.scheme(), member.address);
        self.members.iter().map(url).collect()
    }

    pub fn certificates(&self) -> Option<&Certificates> {
        self.tls.as_ref()
    }

    /// Where a member runs: for tests that talk to etcd themselves.
    pub fn namespace(&self) -> &Netns {
        &self.members[0].namespace
    }

    /// Starts a member, by its number from 0.
    pub fn start_member(&self, number: usize) -> Result<()> {
        let member = self.members.get(number).context("no such member")?;
        let data = self.lab.directory().join(&member.name);
        let peer = |member: &Member| format!("http://{}:2380", member.address);
        let cluster: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, peer(member)))
            .collect();
        let client = format!("{}://{}:2379", self.scheme(), member.address);
        let mut words: Vec<String> = ["etcd", "--name", &member.name, "--data-dir"]
            .map(str::to_owned)
            .to_vec();
        words.push(data.to_string_lossy().into_owned());
        let options = [
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer(member)),
            ("--initial-advertise-peer-urls", peer(member)),
            ("--initial-cluster", cluster.join(",")),
            ("--initial-cluster-state", "new".to_owned()),
            ("--heartbeat-interval", "50".to_owned()),
            ("--election-timeout", "500".to_owned()),
            ("--logger", "zap".to_owned()),
            ("--log-outputs", "stderr".to_owned()),
            ("--log-level", "warn".to_owned()),
        ];
        for (name, value) in options {
            words.extend([name.to_owned(), value]);
        }
        if let Some(files) = &self.tls {
            let files = [
                ("--cert-file", &files.cert),
                ("--key-file", &files.key),
                ("--trusted-ca-file", &files.ca),
            ];
            for (name, file) in files {
                words.extend([name.to_owned(), file.to_string_lossy().into_owned()]);
            }
            words.push("--client-cert-auth".to_owned());
        }
        let process = self.lab.spawn(&member.namespace, &member.name, words)?;
        *lock(&member.process) = Some(process);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill_member(&self, number: usize) -> Result<()> {
        let member = self.members.get(number).context("no such member")?;
        let process = lock(&member.process).take().context("it does not run")?;
        process.kill();
        Ok(())
    }

    pub fn kill(&self) -> Result<()> {
        (0..self.members.len()).try_for_each(|number| self.kill_member(number))
    }

    /// Starts all members and waits until they answer.
    pub fn start(&self) -> Result<()> {
        (0..self.members.len()).try_for_each(|number| self.start_member(number))?;
        self.wait_healthy()
    }

    pub fn wait_healthy(&self) -> Result<()> {
        self.lab.wait_for("etcd answers", START, || {
            self.ctl(&["--command-timeout=1s", "get", "nothing"])
                .map(drop)
        })
    }

    /// Runs etcdctl.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.namespace().command("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(self.endpoints().join(","));
        if let Some(files) = &self.tls {
            let file = |path: &Path| path.to_string_lossy().into_owned();
            command.args(["--cacert", &file(&files.ca), "--cert", &file(&files.cert)]);
            command.args(["--key", &file(&files.key)]);
        }
        if let Some(login) = &*lock(&self.login) {
            command.args(["--user", login]);
        }
        run(command.args(arguments))
    }

    /// From now on every client needs a password; there is a user `agentd` with this one.
    pub fn require_password(&self, password: &str) -> Result<()> {
        for command in [
            "user add root:root",
            "user grant-role root root",
            &format!("user add agentd:{password}"),
            "role add agentd",
            "role grant-permission agentd --prefix=true readwrite /agentd/v1",
            "user grant-role agentd agentd",
            "auth enable",
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            // The role of root may be there already.
            self.ctl(&words)?;
        }
        *lock(&self.login) = Some("root:root".to_owned());
        Ok(())
    }

    /// Drops all history up to now.
    pub fn compact(&self) -> Result<()> {
        let text = self.ctl(&["get", "nothing", "-w", "json"])?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        let revision = answer["header"]["revision"].as_i64().context("revision")?;
        self.ctl(&["compact", &revision.to_string()]).map(drop)
    }

    /// Keys under a path, in order.
    pub fn keys(&self, path: &str) -> Result<Vec<String>> {
        let text = self.ctl(&["get", "--prefix", "--keys-only", path])?;
        let keys: Vec<String> = text
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        ensure!(keys.is_sorted(), "{keys:?}");
        Ok(keys)
    }
}
