//! Which layers the kernel grants on this machine: tried out, because settings don't tell.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::host;
use crate::job::{Exit, Isolation, Job, Limits};
use crate::sys;

/// What a job's first argument is if it is no program but a look at the sandbox from inside.
const PROBE: &str = "aha-sandbox-probe";

/// One layer of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// What it is called.
    pub name: &'static str,
    /// Whether it works.
    pub state: State,
    /// What to do if it doesn't.
    pub remedy: &'static str,
}

/// Whether a layer works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does.
    Works,
    /// It doesn't, and why.
    Refused(String),
    /// A layer before it is missing, so it could not be tried.
    Unknown,
}

const USER_NAMESPACES: &str = "allow user namespaces: sysctl user.max_user_namespaces=10000, \
    kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0 where they exist; \
    in a container, a seccomp profile that allows `unshare` and `clone`";
const MOUNTS: &str = "needs Linux 5.12 or newer, and in a container a profile that allows `mount`, `pivot_root`, \
    `open_tree` and `move_mount`";
const LIMITS: &str = "needs Linux 5.14 or newer, where processes are counted by namespace";

/// Layers in the order in which they are put up, with their remedies.
const LAYERS: [(&str, &str); 13] = [
    (
        "keeper",
        "aha must be able to start itself again: /proc must be mounted, and the program not be deleted",
    ),
    ("user namespace", USER_NAMESPACES),
    ("mount namespace", USER_NAMESPACES),
    ("process namespace", USER_NAMESPACES),
    ("network namespace", USER_NAMESPACES),
    ("ipc namespace", USER_NAMESPACES),
    ("host name namespace", USER_NAMESPACES),
    ("private root", MOUNTS),
    ("no new privileges", "needs Linux 3.5 or newer"),
    ("temporary folder", "needs memory for a file system of 32 MiB"),
    ("resource limits", "raise the hard limits of this process: `ulimit -H`"),
    ("system call filter", "needs a kernel with CONFIG_SECCOMP_FILTER"),
    ("process limit", LIMITS),
];

/// Bits of what a look from inside found to be open.
const OPEN: [(u8, &str, &str); 5] = [
    (1, "private root", "files of the machine can be read"),
    (2, "network namespace", "the machine's network can be reached"),
    (4, "process limit", "more processes can be started than allowed"),
    (8, "resource limits", "more memory can be had than allowed"),
    (16, "system call filter", "a call that is not on the list is made"),
];

/// Tries every layer, once per process.
pub fn probe() -> &'static [Layer] {
    static FOUND: OnceLock<Vec<Layer>> = OnceLock::new();
    FOUND.get_or_init(|| decide(look()))
}

fn look() -> Result<Exit, Error> {
    let mut job = Job::new([PROBE]);
    job.limits = Limits { process_count_max: 4, wall_ms: Some(20_000), ..Limits::default() };
    host::run(&job).map(|outcome| outcome.exit)
}

/// The state of every layer, from what a job came to that was to look at them.
fn decide(looked: Result<Exit, Error>) -> Vec<Layer> {
    let (first_missing, why) = match &looked {
        Ok(_) => (LAYERS.len(), String::new()),
        Err(Error::Refused { layer, why }) => {
            let at = LAYERS.iter().position(|(name, _)| name == layer).unwrap_or(0);
            (at, why.clone())
        }
        Err(error) => (0, error.to_string()),
    };
    let open = match looked {
        Ok(Exit::Code(bits)) => bits as u8,
        Ok(_) => u8::MAX,
        Err(_) => 0,
    };
    let state = |idx: usize, name: &str| {
        if idx == first_missing {
            return State::Refused(why.clone());
        }
        if idx > first_missing {
            return State::Unknown;
        }
        let found = OPEN.iter().find(|(bit, layer, _)| open & bit != 0 && *layer == name);
        found.map_or(State::Works, |(_, _, what)| State::Refused((*what).to_owned()))
    };
    let layers = LAYERS.iter().enumerate();
    layers.map(|(idx, (name, remedy))| Layer { name, state: state(idx, name), remedy }).collect()
}

/// Whether a job is a look from inside.
pub(crate) fn is_probe(argv: &[String]) -> bool {
    argv.first().is_some_and(|first| first == PROBE)
}

/// What can be reached before calls are filtered.
pub(crate) fn before_filter(isolation: Isolation) -> u8 {
    let files = ["/etc/passwd", "/proc/self", "/root", "/home", "/var", "/sys"];
    let is_open = files.iter().any(|path| fs::symlink_metadata(path).is_ok());
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    // Nobody listens there; but only with a network can that be found out.
    let connected = TcpStream::connect_timeout(&address, Duration::from_secs(1));
    let is_refused = connected
        .as_ref()
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
    let has_network = connected.is_ok() || is_refused;
    match isolation {
        Isolation::Strong => u8::from(is_open) | u8::from(has_network) << 1,
        Isolation::Weak => 0,
    }
}

/// The rest, seen from where a program would begin; the exit code is what is open.
pub(crate) fn after_filter(mut seen: u8, limits: &Limits) -> ! {
    let mut children = Vec::new();
    while children.len() <= limits.process_count_max as usize {
        match sys::clone(0) {
            // Until process 1 ends, and all others with it.
            Ok(0) => loop {
                sys::poll([-1], 1000);
            },
            Ok(pid) => children.push(pid),
            Err(_) => break,
        }
    }
    // This process is one of those that are allowed.
    if children.len() as u64 >= limits.process_count_max {
        seen |= 4;
    }
    if sys::can_map(limits.memory_bytes) {
        seen |= 8;
    }
    if sys::can_make_namespace() {
        seen |= 16;
    }
    sys::exit(seen.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(looked: Result<Exit, Error>) -> Vec<&'static str> {
        let layers = decide(looked);
        let is_refused = |layer: &&Layer| matches!(layer.state, State::Refused(_));
        layers.iter().filter(is_refused).map(|layer| layer.name).collect()
    }

    #[test]
    fn a_layer_that_is_refused_leaves_those_behind_it_unknown() {
        let error = Error::Refused { layer: "private root".to_owned(), why: "EPERM".to_owned() };
        let layers = decide(Err(error));
        let states: Vec<&State> = layers.iter().map(|layer| &layer.state).collect();
        assert!(states[..7].iter().all(|state| **state == State::Works));
        assert_eq!(*states[7], State::Refused("EPERM".to_owned()));
        assert!(states[8..].iter().all(|state| **state == State::Unknown));
    }

    #[test]
    fn what_is_open_inside_is_a_layer_that_does_not_work() {
        assert_eq!(refused(Ok(Exit::Code(0))), [""; 0]);
        assert_eq!(refused(Ok(Exit::Code(2 | 4))), ["network namespace", "process limit"]);
        assert_eq!(refused(Ok(Exit::Signal(9))).len(), OPEN.len());
        assert_eq!(refused(Err(Error::NoEntry)), ["keeper"]);
    }

    #[test]
    fn whatever_is_found_open_is_a_layer() {
        assert!(OPEN.iter().all(|(_, name, _)| LAYERS.iter().any(|(layer, _)| layer == name)));
    }
}
