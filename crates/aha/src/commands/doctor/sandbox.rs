//! What programs could be isolated with: tried out, because settings don't tell.

use std::process::{Command, Stdio};

use serde::Serialize;

/// What is there.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// A child could get user, mount, process and network namespaces of its own.
    pub has_user_namespaces: bool,
    /// Landlock's version, where the kernel has it.
    pub landlock_abi: Option<u32>,
    /// The kernel filters system calls.
    pub has_seccomp: bool,
    /// `bwrap` starts.
    pub has_bubblewrap: bool,
    /// `python3` starts.
    pub has_python: bool,
}

impl Probe {
    /// Whether a program can be kept from the network and from this user's files.
    pub fn can_isolate(&self) -> bool {
        self.has_user_namespaces && self.has_seccomp
    }
}

/// Tries everything.
pub fn probe() -> Probe {
    Probe {
        has_user_namespaces: has_user_namespaces(),
        landlock_abi: landlock_abi(),
        has_seccomp: fs_err::metadata("/proc/sys/kernel/seccomp/actions_avail").is_ok(),
        has_bubblewrap: starts("bwrap"),
        has_python: starts("python3"),
    }
}

fn starts(program: &str) -> bool {
    is_success(Command::new(program).arg("--version"))
}

fn is_success(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(target_os = "linux")]
fn has_user_namespaces() -> bool {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("true");
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| {
            let wanted = libc::CLONE_NEWUSER
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWIPC;
            match libc::unshare(wanted) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    is_success(&mut command)
}

#[cfg(target_os = "linux")]
fn landlock_abi() -> Option<u32> {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call reads no memory and returns the version.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}

#[cfg(not(target_os = "linux"))]
fn has_user_namespaces() -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn landlock_abi() -> Option<u32> {
    None
}
