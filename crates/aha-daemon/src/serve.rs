//! The daemon from its start to its end.

use std::net::SocketAddr;
use std::sync::Arc;

use aha_rollout::time;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::api::{self, App};
use crate::board::{Board, Budget};
use crate::error::{Error, Result, blocking};
use crate::events::Events;
use crate::home::{self, Address, Home};
use crate::http::{self, guard::Guard};
use crate::keeper;
use crate::openai::Hub;
use crate::options::Options;
use crate::policy::Policy;
use crate::store::Store;
use crate::submit;
use crate::token::{self, TokenDigest};
use crate::usage::{self, Usages};

/// Open files that are wanted at most.
const OPEN_FILES_MAX: u64 = 1 << 16;
/// Checks of pipelines at once; more wait.
const CHECKS_MAX: usize = 2;

/// Where the daemon listens, and what it asks of clients.
#[derive(Clone, Debug)]
pub struct Listening {
    /// The address.
    pub address: SocketAddr,
    /// Its folder.
    pub home: Home,
    /// Whether a token is required.
    pub requires_token: bool,
    /// Whether a token was made now, and is in the home folder.
    pub is_token_new: bool,
    /// Whether the token is one that was given, and not the one in the home folder.
    pub is_token_given: bool,
}

/// Serves until `stop` is over; then stops all runs after a checkpoint and returns. `listening` hears where.
pub async fn serve(
    options: Options,
    stop: impl Future<Output = ()>,
    listening: impl FnOnce(&Listening),
) -> Result<()> {
    raise_open_files();
    let options = Arc::new(options);
    let opened = Arc::clone(&options);
    let (home, _lock, store) = blocking(move || {
        let (home, lock) = Home::open(&opened.home)?;
        sweep(&home)?;
        let store = Store::open(&home.store())?;
        Ok((home, lock, store))
    })
    .await?;
    let store = Arc::new(store);
    let (guard, is_token_new) = guard(&options, &home, &store).await?;
    let is_token_given = options.token.is_some();
    let base_dir = std::env::current_dir().map_err(Error::io("find", ".".as_ref()))?;
    let policy = Policy::new(&options.allowed, &base_dir, home.root(), &home.runs())?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        Error::environment(format!("can't listen on {}: {error}", options.listen))
            .hint("give another address with --listen, or stop who listens there")
    })?;
    let address = listener.local_addr().map_err(Error::io("find", "the address".as_ref()))?;
    let requires_token = guard.token.is_some();
    let (stopping, stopped) = watch::channel(false);
    let parts = Parts { options, home: home.clone(), policy, store, stop: stopped.clone() };
    let (app, keeper) = parts.assemble().await?;
    let handle = app.keeper.clone();
    let mut work = tokio::task::JoinSet::new();
    work.spawn(usage::watch(Arc::clone(&app), stopped.clone()));
    work.spawn(keeper);
    let limits = http::Limits::default();
    work.spawn(http::accept(listener, api::router(app, guard), limits, stopped));
    home.write_address(&Address {
        url: format!("http://{}", reachable(address)),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })?;
    tracing::info!(%address, home = %home.root().display(), "Daemon listens.");
    listening(&Listening {
        address,
        home: home.clone(),
        requires_token,
        is_token_new,
        is_token_given,
    });
    tokio::select! {
        () = stop => {}
        // Neither ends by itself. Runs end with this process, and go on when it is started again.
        Some(ended) = work.join_next() => {
            home.remove_address();
            let why = ended.err().map(|error| format!(": {error}")).unwrap_or_default();
            return Err(Error::bug(format!("a part of the daemon ended early{why}")));
        }
    }
    tracing::info!("Daemon stops: runs write a checkpoint first.");
    // Nothing new comes in, and streams end.
    let _ = stopping.send(true);
    let drained = handle.drain().await;
    while work.join_next().await.is_some() {}
    home.remove_address();
    drained
}

struct Parts {
    options: Arc<Options>,
    home: Home,
    policy: Policy,
    store: Arc<Store>,
    stop: watch::Receiver<bool>,
}

impl Parts {
    /// What requests are answered with, and the keeper's work.
    async fn assemble(self) -> Result<(Arc<App>, impl Future<Output = ()> + Send)> {
        let Parts { options, home, policy, store, stop } = self;
        let total = options.memory_bytes.unwrap_or_else(submit::free_memory_bytes);
        let (board, events) = (Arc::new(Board::default()), Arc::new(Events::new(time::now_us())));
        let budget = Arc::new(Budget::new(total));
        let hub =
            Arc::new(Hub::new(Arc::clone(&budget), options.model_idle, options.device.clone()));
        let spare = Arc::clone(&hub);
        let (handle, keeper) = keeper::begin(keeper::Args {
            options: Arc::clone(&options),
            home: home.clone(),
            store,
            board: Arc::clone(&board),
            events: Arc::clone(&events),
            budget: Arc::clone(&budget),
            spare: Box::new(move || spare.drop_idle()),
        })
        .await?;
        let app = App {
            queries: Semaphore::new(options.query.parallel_max),
            readers: Arc::new(Semaphore::new(1)),
            curves: api::curves::Remembered::default(),
            checks: Semaphore::new(CHECKS_MAX),
            options,
            home,
            policy,
            board,
            events,
            budget,
            keeper: handle,
            hub,
            usages: Arc::new(Usages::default()),
            counts: Arc::default(),
            query_counts: api::query::Counts::default(),
            stop,
        };
        Ok((Arc::new(app), keeper))
    }
}

/// Who may ask. Where a token is required, the one that was given counts, or else the one whose digest is in the store,
/// or else a new one, which is left in the home folder for clients on this machine.
async fn guard(options: &Options, home: &Home, store: &Arc<Store>) -> Result<(Guard, bool)> {
    let is_loopback = options.listen.ip().is_loopback();
    let mut guard = Guard { is_loopback, hosts: options.hosts.clone(), token: None };
    if is_loopback && !options.requires_token {
        return Ok((guard, false));
    }
    let (given, home, store) = (options.token.clone(), home.clone(), Arc::clone(store));
    let (digest, is_new) = blocking(move || {
        if let Some(given) = given {
            if given.len() < token::TOKEN_LEN_MIN {
                let message =
                    format!("the token has fewer than {} characters", token::TOKEN_LEN_MIN);
                return Err(Error::input(
                    message,
                    "take a longer one, such as of `openssl rand -hex 32`",
                ));
            }
            return Ok((TokenDigest::of(&given), false));
        }
        if let Some(known) = store.token()? {
            return Ok((known, false));
        }
        let fresh = token::fresh()?;
        home::write_secret(&home.token(), &format!("{fresh}\n"))?;
        store.set_token(&TokenDigest::of(&fresh))?;
        Ok((TokenDigest::of(&fresh), true))
    })
    .await?;
    guard.token = Some(digest);
    Ok((guard, is_new))
}

/// Lets this process have as many open files as it may: each connection is one, and the system's first limit is low.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls. Where the limit can't be raised, connections are refused sooner.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max.min(OPEN_FILES_MAX);
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// An address at which clients on this machine reach the daemon.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// Removes what killed queries left, and what removed runs did.
fn sweep(home: &Home) -> Result<()> {
    let tmp = home.tmp();
    for entry in std::fs::read_dir(&tmp).map_err(Error::io("list", &tmp))? {
        home::remove(&entry.map_err(Error::io("list", &tmp))?.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_everywhere_is_reached_on_this_machine() {
        let shown = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(shown("0.0.0.0:7717"), "127.0.0.1:7717");
        assert_eq!(shown("[::]:7717"), "[::1]:7717");
        assert_eq!(shown("10.0.0.1:1"), "10.0.0.1:1");
    }
}
