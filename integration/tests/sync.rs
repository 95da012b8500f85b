//! Clients that state all their workloads: what they forget goes, what they did not finish saying
//! changes nothing, and none of them can exhaust the agent.

use std::time::Duration;

use agentd_proto::v1::{
    self, sync_workloads_request::Message, sync_workloads_response::Kind,
    workload_service_client::WorkloadServiceClient,
};
use anyhow::{Context as _, Result, bail, ensure};
use integration::lab::agent::Agent;
use integration::lab::client::channel;
use integration::lab::workload::request;
use integration::lab::{self, Lab, PATIENCE, single};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A stream of a client.
struct Stream {
    sender: mpsc::Sender<v1::SyncWorkloadsRequest>,
    answers: Streaming<v1::SyncWorkloadsResponse>,
    sequence: u64,
}

fn begin_of(owner: &str) -> Message {
    Message::Begin(v1::SyncBegin {
        owner: owner.to_owned(),
        grace: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
    })
}

impl Stream {
    async fn open(agent: &Agent, first: Message) -> Result<Self> {
        let mut client = WorkloadServiceClient::new(channel(&agent.socket())?);
        let (sender, requests) = mpsc::channel(16);
        let request = v1::SyncWorkloadsRequest {
            sequence: 1,
            message: Some(first),
        };
        sender.send(request).await?;
        let answers = client.sync_workloads(ReceiverStream::new(requests)).await?;
        Ok(Self {
            sender,
            answers: answers.into_inner(),
            sequence: 1,
        })
    }

    async fn begin(agent: &Agent, owner: &str) -> Result<Self> {
        let mut stream = Self::open(agent, begin_of(owner)).await?;
        stream.until(Kind::Begun).await?;
        Ok(stream)
    }

    async fn send(&mut self, message: Message) -> Result<u64> {
        self.sequence += 1;
        let request = v1::SyncWorkloadsRequest {
            sequence: self.sequence,
            message: Some(message),
        };
        self.sender.send(request).await?;
        Ok(self.sequence)
    }

    async fn next(&mut self) -> Result<v1::SyncWorkloadsResponse> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await??;
        answer.context("the stream has ended")
    }

    async fn until(&mut self, kind: Kind) -> Result<v1::SyncWorkloadsResponse> {
        loop {
            let answer = self.next().await?;
            if answer.kind() == kind {
                return Ok(answer);
            }
            if answer.kind() == Kind::Failed {
                bail!("{answer:?}");
            }
        }
    }

    /// The answer to the message of that number.
    async fn answer(&mut self, sequence: u64) -> Result<v1::SyncWorkloadsResponse> {
        loop {
            let answer = self.next().await?;
            if answer.sequence == sequence {
                return Ok(answer);
            }
        }
    }

    /// How the stream ended.
    async fn end(&mut self) -> Result<Status> {
        loop {
            match tokio::time::timeout(PATIENCE, self.answers.message()).await? {
                Ok(Some(_)) => {}
                Ok(None) => bail!("it ended without a status"),
                Err(status) => return Ok(status),
            }
        }
    }
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

fn names(agent: &Agent) -> Result<Vec<String>> {
    let workloads = agent.client().workloads()?;
    Ok(workloads.into_iter().map(|one| one.id).collect())
}

fn agent(lab: &Lab) -> Result<Agent> {
    let mut config = single::config();
    config.cooldown = "1s".into();
    let agent = single::prepare(lab, config)?;
    agent.start()?;
    Ok(agent)
}

/// A line of a file for `agentctl workload sync`.
fn line(lab: &Lab, id: &str) -> Result<String> {
    let namespace = lab.namespace(&format!("w-{id}"))?;
    let path = namespace.path().display().to_string();
    Ok(format!("{{\"id\": {id:?}, \"netns\": {path:?}}}\n"))
}

#[test]
fn workloads_of_an_owner_follow_a_file() {
    lab::run(|lab| {
        let agent = agent(lab)?;
        agent.workload("nobodys")?;
        let lines: Vec<String> = ["a", "b", "c"]
            .iter()
            .map(|id| line(lab, id))
            .collect::<Result<_>>()?;
        let sync = |owner: &str, content: &str, more: &[&str]| {
            let file = lab.write_file("workloads.json", content)?;
            let file = file.display().to_string();
            let mut command = vec!["workload", "sync", &file, "--owner", owner, "--grace", "1s"];
            command.extend(more);
            agent.agentctl(&command)
        };
        let said = sync("nomad", &lines.concat(), &[])?;
        ensure!(
            said == "3 workload(s) stand, 3 of them new; nothing else is of this owner\n",
            "{said}"
        );
        // The same again changes nothing, and another owner's empty set neither.
        let said = sync("nomad", &lines.concat(), &[])?;
        ensure!(
            said.contains("3 workload(s) stand, 0 of them new"),
            "{said}"
        );
        sync("slurm", "", &["--wait"])?;
        ensure!(names(&agent)? == ["a", "b", "c", "nobodys"]);

        // A file with a mistake is not half a set.
        let broken = format!("{}{{\"id\": \"b\", \"netnss\": 3}}\n", lines[0]);
        let error = sync("nomad", &broken, &[]).err().context("not refused")?;
        ensure!(
            format!("{error:#}").contains("workloads.json:2"),
            "{error:#}"
        );
        // What cannot be had is said, and what is named stays.
        let refused = format!(
            "{}{}",
            lines[0], "{\"id\": \"b\", \"netns\": \"/nowhere\"}\n"
        );
        let error = sync("nomad", &refused, &[]).err().context("not refused")?;
        ensure!(
            format!("{error:#}").contains("1 of 2 workload(s)"),
            "{error:#}"
        );
        lab.wait_for("only what was not named goes", PATIENCE, || {
            let names = names(&agent)?;
            ensure!(names == ["a", "b", "nobodys"], "{names:?}");
            Ok(())
        })?;
        let said = sync("nomad", &lines[0], &["--wait"])?;
        ensure!(
            said.contains("b released\n") && said.contains("1 not in the file, released"),
            "{said}"
        );
        ensure!(names(&agent)? == ["a", "nobodys"]);
        Ok(())
    });
}

#[test]
fn a_stream_that_is_cut_or_an_agent_that_is_killed_before_the_set_is_whole_releases_nothing() {
    lab::run(|lab| {
        let agent = agent(lab)?;
        let ids: Vec<String> = (0..20).map(|number| format!("w{number:02}")).collect();
        let mut namespaces = Vec::new();
        for id in &ids {
            namespaces.push(lab.namespace(&format!("w-{id}"))?);
        }
        let requests = || {
            let pairs = ids.iter().zip(&namespaces);
            pairs.map(|(id, namespace)| request(id, namespace))
        };
        block_on(async {
            let mut stream = Stream::begin(&agent, "nomad").await?;
            for add in requests() {
                stream.send(Message::Workload(add)).await?;
            }
            for _ in &ids {
                stream.until(Kind::Standing).await?;
            }
            let complete = stream.send(Message::Complete(v1::SyncComplete {})).await?;
            let synced = stream.answer(complete).await?;
            ensure!((synced.named, synced.unnamed) == (20, 0), "{synced:?}");

            // Cut off in the middle.
            let mut stream = Stream::begin(&agent, "nomad").await?;
            for add in requests().take(5) {
                stream.send(Message::Workload(add)).await?;
            }
            stream.until(Kind::Standing).await?;
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(names(&agent)? == ids);

        // Killed while it is being told.
        block_on(async {
            let mut stream = Stream::begin(&agent, "nomad").await?;
            for add in requests().take(10) {
                stream.send(Message::Workload(add)).await?;
            }
            stream.until(Kind::Standing).await?;
            agent.kill()
        })?;
        agent.start()?;
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(
            names(&agent)? == ids,
            "after a restart it waits for the next whole set"
        );

        // And killed in the grace period of a set that was whole.
        block_on(async {
            let mut stream = Stream::begin(&agent, "nomad").await?;
            stream.send(Message::Complete(v1::SyncComplete {})).await?;
            let synced = stream.until(Kind::Synced).await?;
            ensure!((synced.named, synced.unnamed) == (0, 20), "{synced:?}");
            agent.kill()
        })?;
        agent.start()?;
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(names(&agent)? == ids);

        // The next whole set has them released, and tells.
        block_on(async {
            let mut stream = Stream::begin(&agent, "nomad").await?;
            stream.send(Message::Keep("w07".to_owned())).await?;
            stream.until(Kind::Kept).await?;
            stream.send(Message::Complete(v1::SyncComplete {})).await?;
            let mut released = Vec::new();
            while released.len() < 19 {
                let answer = stream.until(Kind::Released).await?;
                released.push(answer.workload.unwrap_or_default().id);
            }
            ensure!(!released.contains(&"w07".to_owned()), "{released:?}");
            // Events after the set.
            let id = stream.send(Message::Delete(v1::DeleteWorkloadRequest {
                id: "w07".to_owned(),
                generation: 0,
            }));
            let id = id.await?;
            ensure!(stream.answer(id).await?.deleted);
            Ok(())
        })?;
        ensure!(names(&agent)?.is_empty());
        lab.wait_for("no route of them is left", PATIENCE, || {
            let routes = agent.namespace().show("ip route show proto 70")?;
            ensure!(!routes.contains("dev agt"), "{routes}");
            Ok(())
        })
    });
}

#[test]
fn one_stream_of_an_owner_ends_the_other_and_touches_nobody_elses() {
    lab::run(|lab| {
        let agent = agent(lab)?;
        agent.workload("nobodys")?;
        block_on(async {
            let mut first = Stream::begin(&agent, "nomad").await?;
            let namespace = lab.namespace("w-a")?;
            first
                .send(Message::Workload(request("a", &namespace)))
                .await?;
            let stands = first.until(Kind::Standing).await?;
            ensure!(stands.workload.unwrap_or_default().owner == "nomad");
            let mut other = Stream::begin(&agent, "slurm").await?;
            for id in ["a", "nobodys"] {
                let delete = Message::Delete(v1::DeleteWorkloadRequest {
                    id: id.to_owned(),
                    generation: 0,
                });
                let sequence = other.send(delete).await?;
                let error = other.answer(sequence).await?.error.unwrap_or_default();
                ensure!(error.reason == "OTHER_OWNER", "{error:?}");
                let sequence = other.send(Message::Keep(id.to_owned())).await?;
                let error = other.answer(sequence).await?.error.unwrap_or_default();
                ensure!(error.reason == "WORKLOAD_NOT_FOUND", "{error:?}");
            }
            let sequence = other
                .send(Message::Workload(request("a", &namespace)))
                .await?;
            let error = other.answer(sequence).await?.error.unwrap_or_default();
            ensure!(
                (error.code, error.reason.as_str())
                    == (Code::AlreadyExists.into(), "WORKLOAD_EXISTS"),
                "{error:?}"
            );
            let _second = Stream::begin(&agent, "nomad").await?;
            let end = first.end().await?;
            ensure!(end.code() == Code::Aborted, "{end:?}");
            // Without begin there is no stream.
            let complete = Message::Complete(v1::SyncComplete {});
            let mut wrong = Stream::open(&agent, complete).await?;
            let end = wrong.end().await?;
            ensure!(end.code() == Code::InvalidArgument, "{end:?}");
            Ok(())
        })?;
        ensure!(names(&agent)? == ["a", "nobodys"]);
        Ok(())
    });
}

/// Kilobytes of memory that the agent has.
fn resident(agent: &Agent) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process()?.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no VmRSS")?.parse()?)
}

#[test]
fn a_client_that_never_stops_or_never_reads_costs_the_agent_little() {
    lab::run(|lab| {
        let agent = agent(lab)?;
        agent.workload("real")?;
        let before = resident(&agent)?;
        block_on(async {
            // Messages about workloads that do not exist, and none of the answers is read. What is on
            // its way fits into the windows of the connection.
            let mut deaf = Stream::open(&agent, begin_of("deaf")).await?;
            let mut sent = 0;
            loop {
                let message = deaf.send(Message::Keep(format!("no-such-workload-{sent}")));
                match tokio::time::timeout(Duration::from_secs(1), message).await {
                    Ok(result) => drop(result?),
                    // Held back, as it should be.
                    Err(_) => break,
                }
                sent += 1;
                ensure!(sent < 1_000_000, "it was never held back");
            }
            // Others are served, and one that reads is answered message by message.
            // Its client blocks, which a thread of this runtime must not.
            let served =
                std::thread::scope(|scope| scope.spawn(|| agent.client().status().is_ok()).join());
            ensure!(served.is_ok_and(|served| served), "nobody else is served");
            let mut busy = Stream::begin(&agent, "busy").await?;
            for number in 0..10_000 {
                let message = Message::Keep(format!("no-such-workload-{number}"));
                let sequence = busy.send(message).await?;
                if number % 10 == 9 {
                    busy.answer(sequence).await?;
                }
            }
            Ok(())
        })?;
        let after = resident(&agent)?;
        ensure!(
            after < before + 20_000,
            "from {before} to {after} kB of memory"
        );
        agent.workload("another")?;
        Ok(())
    });
}
