//! The systemd unit: verified, rated, and booted under a real systemd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use integration::lab::binaries;
use nix::sys::signal::Signal;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn unit() -> PathBuf {
    repository().join("deploy/systemd/agentd.service")
}

#[test]
fn the_unit_is_accepted_without_a_word_and_its_exposure_is_low() -> Result<()> {
    // The verification wants the program to be there.
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("agentd.service");
    let text = fs::read_to_string(unit())?;
    ensure!(text.contains("ExecStart=/usr/bin/agentd "));
    fs::write(
        &copy,
        text.replace("ExecStart=/usr/bin/agentd ", "ExecStart=/bin/true "),
    )?;
    let verify = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&copy)
        .output()?;
    let said = [verify.stdout, verify.stderr].concat();
    ensure!(
        verify.status.success() && said.is_empty(),
        "{}",
        String::from_utf8_lossy(&said)
    );
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=41", "--no-pager"])
        .arg(&copy)
        .output()?;
    ensure!(
        security.status.success(),
        "{}",
        String::from_utf8_lossy(&security.stdout)
    );
    Ok(())
}

/// The directory of the small Debian that `./dev` makes once; made here when it is missing.
fn system_root() -> Result<PathBuf> {
    let root = match std::env::var_os("AGENTD_SYSTEM_ROOT") {
        Some(path) => PathBuf::from(path),
        None => binaries::find("agentd")?
            .ancestors()
            .nth(2)
            .context("target directory")?
            .join("lab/debian-root"),
    };
    if !root.with_extension("done").exists() {
        let status = Command::new(repository().join("integration/systemd/make-root.sh"))
            .arg(&root)
            .status()?;
        ensure!(status.success(), "make-root.sh: {status}");
    }
    Ok(root)
}

/// Boots the root with a job directory and returns the job's status and output.
fn boot(root: &Path, job: &Path) -> Result<(i32, String)> {
    let console = fs::File::create(job.join("console"))?;
    // The root stays as it is: changes go to an overlay in memory. nspawn keeps its bookkeeping in
    // /run/systemd/nspawn, which is a private mount so that nothing of it stays.
    let script = "mkdir -p /run/systemd/nspawn && mount -t tmpfs tmpfs /run/systemd/nspawn && \
                  exec systemd-nspawn --quiet --machine=\"agentd-$$\" --register=no --keep-unit \
                  --private-network --capability=CAP_NET_ADMIN --console=pipe --volatile=overlay \
                  --system-call-filter='fanotify_init fanotify_mark' \
                  --bind=\"$2:/job\" --directory=\"$1\" --boot";
    let mut command = Command::new("timeout");
    command
        .args([
            "--kill-after=5",
            "100",
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(root)
        .arg(job)
        .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console);
    // SAFETY: between fork and exec only the system call prctl is made.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    let status = command.status()?;
    let output = fs::read_to_string(job.join("out")).unwrap_or_default();
    let console = fs::read_to_string(job.join("console")).unwrap_or_default();
    let code = fs::read_to_string(job.join("status"))
        .with_context(|| format!("the job did not end ({status}):\n{output}\n{console}"))?;
    Ok((code.trim().parse()?, output))
}

const CONFIG: &str = r#"
[node]
name = "node-a"
address = "192.168.26.11"
address6 = "fd00:26::11"

[[pool]]
name = "default"
cidr = "10.244.0.0/16"

[[pool]]
name = "default6"
cidr = "fd10:244::/64"

[ipam]
claim = ["10.244.1.0/24", "fd10:244::1:0/112"]

[bgp]
asn = 64512
"#;

#[test]
fn a_real_systemd_starts_watches_restarts_and_stops_it() -> Result<()> {
    let root = system_root()?;
    let job = tempfile::Builder::new().prefix("agentd-job").tempdir()?;
    for program in ["agentd", "agentctl"] {
        fs::copy(binaries::find(program)?, job.path().join(program))?;
    }
    for (file, name) in [
        (unit(), "agentd.service"),
        (
            repository().join("deploy/sysusers.d/agentd.conf"),
            "sysusers.conf",
        ),
        (
            repository().join("deploy/iproute2/rt_protos.d/agentd.conf"),
            "rt_protos.conf",
        ),
        (repository().join("integration/systemd/job.sh"), "run"),
    ] {
        fs::copy(&file, job.path().join(name)).with_context(|| file.display().to_string())?;
    }
    fs::set_permissions(job.path().join("run"), fs::Permissions::from_mode(0o755))?;
    fs::write(job.path().join("agentd.toml"), CONFIG)?;
    let (status, output) = boot(&root, job.path())?;
    ensure!(
        status == 0 && output.contains("all of it holds"),
        "the job ended with {status}:\n{output}"
    );
    Ok(())
}
