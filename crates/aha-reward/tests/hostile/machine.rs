//! What of the machine must be the same afterwards.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const CANARY_TEXT: &str = "nobody may read this";
/// A user that no system gives away: "nobody".
const ORDINARY_USER: u32 = 65534;

/// Things to be read, changed, reached or killed.
pub struct Machine {
    folder: PathBuf,
    pub canary: PathBuf,
    pub socket: PathBuf,
    pub port: u16,
    network: TcpListener,
    unix: UnixListener,
    process: Child,
    mounts: String,
    host_name: String,
}

impl Machine {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("aha-hostile-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let canary = folder.join("canary");
        fs::write(&canary, CANARY_TEXT).unwrap();
        // Whoever sees it may do anything to it.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(&canary, fs::Permissions::from_mode(0o666)).unwrap();
        let network = TcpListener::bind("127.0.0.1:0").unwrap();
        network.set_nonblocking(true).unwrap();
        let socket = folder.join("socket");
        let unix = UnixListener::bind(&socket).unwrap();
        unix.set_nonblocking(true).unwrap();
        let port = network.local_addr().unwrap().port();
        let process = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        Self { folder, canary, socket, port, network, unix, process, mounts, host_name }
    }

    /// What is not as it was, and who is still there.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut expect = |is_good: bool, complaint: &str| {
            if !is_good {
                found.push(complaint.to_owned());
            }
        };
        let names: Vec<_> =
            fs::read_dir(&self.folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        expect(names.len() == 2, &format!("the canary's folder holds {names:?}"));
        let text = fs::read_to_string(&self.canary).unwrap_or_default();
        expect(text == CANARY_TEXT, "the canary has changed");
        expect(self.network.accept().is_err(), "somebody came through the network");
        expect(self.unix.accept().is_err(), "somebody came through a socket's file");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        expect(mounts == self.mounts, "there are other mounts");
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        expect(host_name == self.host_name, "the host has another name");
        let alive = descendants();
        let own = self.process.id().to_string();
        expect(alive.contains(&own), "a process of the machine was killed");
        let left: Vec<String> = alive.into_iter().filter(|pid| *pid != own).collect();
        let command = |pid: &String| {
            let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("{pid} {}", text.replace('\0', " "))
        };
        let shown: Vec<String> = left.iter().map(command).collect();
        expect(left.is_empty(), &format!("processes are left: {}", shown.join(", ")));
        found
    }

    pub fn give_back(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Makes this process the parent of whoever loses its own, so that none goes unseen.
pub fn adopt_orphans() {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, 0);
}

pub fn user() -> u32 {
    // SAFETY: takes nothing and can't fail.
    unsafe { libc::geteuid() }
}

/// Living processes that come from this one.
fn descendants() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut parents = vec![std::process::id().to_string()];
    while let Some(parent) = parents.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            parents.extend(text.split_whitespace().map(str::to_owned));
            found.extend(text.split_whitespace().map(str::to_owned));
        }
    }
    found
}

/// Runs all of this again as a user without rights; from a copy, since that user may not get here.
pub fn run_as_ordinary_user() -> bool {
    let copy = std::env::temp_dir().join(format!("aha-hostile-{}-program", std::process::id()));
    fs::copy("/proc/self/exe", &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&copy);
    command.args(std::env::args_os().skip(1)).current_dir("/");
    let status = command.uid(ORDINARY_USER).gid(ORDINARY_USER).status().unwrap();
    fs::remove_file(&copy).unwrap();
    status.success()
}
