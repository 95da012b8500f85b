//! Rules about who may depend on whom, read from `cargo metadata` and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn metadata() -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned(), "--locked".to_owned()])
        .exec()
        .context("cargo metadata")
}

/// For every package of the workspace the packages of the workspace it needs, tests included.
fn workspace_dependencies(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let names: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    metadata
        .workspace_packages()
        .iter()
        .map(|package| {
            let needs = package
                .dependencies
                .iter()
                .map(|dependency| dependency.name.clone())
                .filter(|name| names.contains(name))
                .collect();
            (package.name.to_string(), needs)
        })
        .collect()
}

#[test]
fn proto_bgp_and_dataplane_depend_on_none_of_ours_and_nothing_depends_on_integration() -> Result<()>
{
    let dependencies = workspace_dependencies(&metadata()?);
    let of = |name: &str| -> Result<&BTreeSet<String>> {
        dependencies
            .get(name)
            .with_context(|| format!("no package {name}"))
    };
    for independent in ["agentd-proto", "bgp", "dataplane"] {
        ensure!(
            of(independent)?.is_empty(),
            "{independent} depends on {:?}",
            of(independent)?
        );
    }
    let expected: BTreeSet<String> = ["agentd-proto", "bgp", "dataplane"]
        .map(String::from)
        .into();
    ensure!(*of("agentd")? == expected, "agentd: {:?}", of("agentd")?);
    for (name, needs) in &dependencies {
        ensure!(
            !needs.contains("integration"),
            "{name} depends on integration"
        );
    }
    Ok(())
}

#[test]
fn bgp_without_its_driver_knows_no_runtime() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--package",
            "bgp",
            "--no-default-features",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(root())
        .output()?;
    let tree = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && tree.contains("zettabgp"),
        "cargo tree: {}\n{tree}",
        String::from_utf8_lossy(&output.stderr)
    );
    for runtime in ["tokio", "futures", "mio", "socket2", "tonic", "rtnetlink"] {
        ensure!(
            !tree
                .lines()
                .any(|line| line.split(' ').next() == Some(runtime)),
            "the core of bgp depends on {runtime}"
        );
    }
    Ok(())
}

/// All Rust sources under a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                sources(&path, found)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn only_the_wire_layer_names_the_codec_library() -> Result<()> {
    let wire = root().join("bgp/src/wire");
    let mut files = Vec::new();
    for package in ["proto", "bgp/src", "dataplane", "daemon"] {
        sources(&root().join(package), &mut files)?;
    }
    ensure!(files.len() > 20, "only {} files found", files.len());
    for file in files {
        if file.starts_with(&wire) {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        for (number, line) in text.lines().enumerate() {
            // Comments may speak of it.
            let code = line.split("//").next().unwrap_or_default();
            ensure!(
                !code.contains("zettabgp"),
                "{}:{}: {line}",
                file.display(),
                number + 1
            );
        }
    }
    Ok(())
}

#[test]
fn cores_do_not_read_clocks_sleep_spawn_or_lock() -> Result<()> {
    let cores = [
        "bgp/src/session",
        "bgp/src/speaker",
        "bgp/src/rib",
        "bgp/src/policy",
        "bgp/src/wire",
        "dataplane/src/reconcile",
        "daemon/src/ipam",
        "daemon/src/node",
    ];
    let forbidden = [
        "Instant::now",
        "SystemTime::now",
        "std::net::TcpStream",
        "std::net::UdpSocket",
        "thread::",
        "Mutex",
        "RwLock",
        "tokio::",
        "std::fs",
        "std::process",
    ];
    for core in cores {
        let mut files = Vec::new();
        sources(&root().join(core), &mut files)?;
        for file in files {
            let is_test = file
                .components()
                .any(|part| part.as_os_str().to_string_lossy().starts_with("tests"));
            // The shell's way to a core lies beside it: senders and receivers, no decisions.
            let is_shell = file.ends_with("daemon/src/node/handle.rs");
            if is_test || is_shell {
                continue;
            }
            let text = std::fs::read_to_string(&file)?;
            for (number, line) in text.lines().enumerate() {
                if line.trim_start().starts_with("#[cfg(test)]") {
                    break;
                }
                let code = line.split("//").next().unwrap_or_default();
                for word in forbidden {
                    ensure!(
                        !code.contains(word),
                        "{}:{}: a core must not use {word}: {line}",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
    Ok(())
}

/// The speaker is of use to other programs: nothing is switched on unasked, it knows nothing of
/// what this repository is for, and no type of the codec library is in its interface.
#[test]
fn bgp_is_a_library_of_its_own() -> Result<()> {
    let metadata = metadata()?;
    let bgp = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == "bgp")
        .context("no package bgp")?;
    let default = bgp.features.get("default").context("feature default")?;
    ensure!(default.is_empty(), "default features: {default:?}");

    let mut files = Vec::new();
    for part in ["src", "examples", "tests", "benches", "fuzz/fuzz_targets"] {
        sources(&root().join("bgp").join(part), &mut files)?;
    }
    ensure!(files.len() > 50, "only {} files found", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            for word in [
                "agentd",
                "agentctl",
                "workload",
                "orchestrator",
                "kubernetes",
            ] {
                ensure!(
                    !lower.contains(word),
                    "{}:{}: a word of the product: {line}",
                    file.display(),
                    number + 1
                );
            }
        }
    }
    // `typed` is the only module that names the codec library, and lets out bytes and texts only.
    let typed = std::fs::read_to_string(root().join("bgp/src/wire/typed.rs"))?;
    let public: Vec<&str> = typed
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with("pub ") || line.starts_with("pub(crate)"))
        .collect();
    ensure!(
        public == ["pub fn format_extended_community(community: [u8; 8]) -> String {"],
        "public items of bgp/src/wire/typed.rs: {public:#?}"
    );
    Ok(())
}
