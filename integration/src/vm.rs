//! Runs a test again in a small virtual machine with Debian's kernel, for what the kernel of this
//! machine does not have.
//!
//! `integration/vm/make-root.sh` makes the machine's kernel and file system once; `./dev test` does
//! that and names their directory in `AGENTD_VM`. Where there is none (no qemu, or no way to fetch the
//! kernel), the test is skipped and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::binaries;

/// The variable that names the directory with the machine's kernel and file system.
pub const DIRECTORY_VARIABLE: &str = "AGENTD_VM";
/// Set inside the machine.
const INSIDE_VARIABLE: &str = "AGENTD_INSIDE_VM";

/// Whether the running kernel makes IPIP devices. That of the machine does.
pub fn has_ipip() -> bool {
    if std::env::var_os(INSIDE_VARIABLE).is_some() {
        return true;
    }
    let script =
        "ip link add agentd-probe type ipip local 192.0.2.1 && ip link delete agentd-probe";
    Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs the test of that name, of the running test program, in the machine, and passes or fails as
/// it does there.
///
/// # Panics
///
/// When it fails there.
pub fn run_this_test(name: &str) {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from) else {
        println!("SKIPPED: {name}: {DIRECTORY_VARIABLE} names no virtual machine (see ./dev test)");
        return;
    };
    if !directory.join("vmlinuz").is_file() {
        println!(
            "SKIPPED: {name}: there is no virtual machine in {}",
            directory.display()
        );
        return;
    }
    let test = std::env::current_exe().expect("the path of this program");
    let agentd = binaries::find("agentd").expect("agentd");
    let agentctl = binaries::find("agentctl").expect("agentctl");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/run.sh");
    let output = Command::new(script)
        .arg(directory)
        .arg(name)
        .args([test, agentd, agentctl])
        .output()
        .expect("vm/run.sh");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "{name} in the virtual machine: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
