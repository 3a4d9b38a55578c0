//! A proxy in front of the database that cuts a connection at the moment a test wants.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where a connection is cut, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// What holds the marker does not reach the server.
    Question,
    /// It reaches the server, whose answer does not come back.
    Answer,
}

#[derive(Default)]
struct State {
    /// Answers that hold this do not come back.
    dropped: Option<Vec<u8>>,
    armed: Option<(Cut, Vec<u8>)>,
}

/// A proxy on a port of its own.
pub(super) struct Proxy {
    state: Arc<Mutex<State>>,
    /// Whether new connections have to wait.
    held: watch::Sender<bool>,
    hold_after: Arc<Mutex<bool>>,
}

impl Proxy {
    /// In front of `host:port` of a URL; the URL that leads through it.
    pub(super) async fn start(url: &str) -> (Proxy, String) {
        let parsed = url::Url::parse(url).unwrap();
        let host = parsed.host_str().unwrap().to_owned();
        let to = (host, parsed.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (held, waits) = watch::channel(false);
        let proxy = Proxy {
            state: Arc::default(),
            held,
            hold_after: Arc::default(),
        };
        let (state, held) = (proxy.state.clone(), proxy.held.clone());
        let hold_after = proxy.hold_after.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, to, mut waits) = (state.clone(), to.clone(), waits.clone());
                let (held, hold_after) = (held.clone(), hold_after.clone());
                tokio::spawn(async move {
                    let _ = waits.wait_for(|held| !held).await;
                    let server = TcpStream::connect((to.0.as_str(), to.1)).await.unwrap();
                    forward(client, server, state, move || {
                        if *hold_after.lock().unwrap() {
                            held.send_replace(true);
                        }
                    })
                    .await;
                });
            }
        });
        let mut through = parsed;
        through.set_host(Some("127.0.0.1")).unwrap();
        through.set_port(Some(port)).unwrap();
        through.query_pairs_mut().append_pair("sslmode", "disable");
        (proxy, through.into())
    }

    /// Cuts the next connection on which the marker is sent. With `hold`, new ones wait from then on.
    pub(super) fn arm(&self, cut: Cut, marker: &[u8], hold: bool) {
        self.state.lock().unwrap().armed = Some((cut, marker.to_vec()));
        *self.hold_after.lock().unwrap() = hold;
    }

    /// Drops every answer that holds the marker from now on.
    pub(super) fn drop_answers_with(&self, marker: &[u8]) {
        self.state.lock().unwrap().dropped = Some(marker.to_vec());
    }

    /// Whether it was not cut yet.
    pub(super) fn is_armed(&self) -> bool {
        self.state.lock().unwrap().armed.is_some()
    }

    /// Lets new connections through again.
    pub(super) fn release(&self) {
        self.held.send_replace(false);
    }
}

fn holds(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|w| w == marker)
}

async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    state: Arc<Mutex<State>>,
    cut_now: impl Fn(),
) {
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(n @ 1..) = read else { return };
                let cut = {
                    let mut state = state.lock().unwrap();
                    let here = |(_, marker): &(Cut, Vec<u8>)| holds(&up[..n], marker);
                    match state.armed.as_ref().is_some_and(here) {
                        true => state.armed.take(),
                        false => None,
                    }
                };
                match cut {
                    Some((Cut::Question, _)) => return cut_now(),
                    Some((Cut::Answer, _)) => {
                        server.write_all(&up[..n]).await.unwrap();
                        cut_now();
                        // Until the server has answered.
                        let _ = server.read(&mut down).await;
                        return;
                    }
                    None => if server.write_all(&up[..n]).await.is_err() { return },
                }
            }
            read = server.read(&mut down) => {
                let Ok(n @ 1..) = read else { return };
                let dropped = {
                    let state = state.lock().unwrap();
                    state.dropped.as_ref().is_some_and(|marker| holds(&down[..n], marker))
                };
                if dropped {
                    continue;
                }
                if client.write_all(&down[..n]).await.is_err() { return }
            }
        }
    }
}
