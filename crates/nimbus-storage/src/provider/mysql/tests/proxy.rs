//! A proxy in front of the server that cuts a connection at the moment a test wants.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where a connection is cut, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// What holds the marker does not reach the server.
    Question,
    /// It reaches the server, whose answers do not come back.
    Answer,
}

/// What is common to the connections.
struct State {
    armed: Mutex<Option<(Cut, Vec<u8>, bool)>>,
    /// Whether new connections have to wait.
    held: watch::Sender<bool>,
}

/// A proxy on a port of its own.
pub(super) struct Proxy {
    state: Arc<State>,
}

impl Proxy {
    /// In front of `host:port` of a URL; the URL that leads through it.
    pub(super) async fn start(url: &str) -> (Proxy, String) {
        let mut parsed = url::Url::parse(url).unwrap();
        let host = parsed.host_str().unwrap().to_owned();
        let to = (host, parsed.port().unwrap_or(3306));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            armed: Mutex::default(),
            held: watch::channel(false).0,
        });
        tokio::spawn(accept(listener, to, state.clone()));
        parsed.set_host(Some("127.0.0.1")).unwrap();
        parsed.set_port(Some(port)).unwrap();
        // What is encrypted cannot be looked into.
        parsed.query_pairs_mut().append_pair("ssl-mode", "disabled");
        (Proxy { state }, parsed.into())
    }

    /// Cuts the next connection on which the marker is sent, as a value or in SQL. With `hold`, new ones wait
    /// from then on.
    pub(super) fn arm(&self, cut: Cut, marker: &[u8], hold: bool) {
        *self.state.armed.lock().unwrap() = Some((cut, marker.to_vec(), hold));
    }

    /// Whether it was not cut yet.
    pub(super) fn is_armed(&self) -> bool {
        self.state.armed.lock().unwrap().is_some()
    }

    /// Lets new connections through again.
    pub(super) fn release(&self) {
        self.state.held.send_replace(false);
    }
}

async fn accept(listener: TcpListener, to: (String, u16), state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let (state, to) = (state.clone(), to.clone());
        tokio::spawn(async move {
            let mut held = state.held.subscribe();
            let _ = held.wait_for(|held| !held).await;
            let server = TcpStream::connect((to.0.as_str(), to.1)).await.unwrap();
            forward(client, server, &state).await;
        });
    }
}

/// The cut that this part of a question calls for.
fn cut_in(question: &[u8], state: &State) -> Option<Cut> {
    let mut armed = state.armed.lock().unwrap();
    let has = |marker: &[u8]| question.windows(marker.len()).any(|w| w == marker);
    let is_here = armed.as_ref().is_some_and(|(_, marker, _)| {
        has(marker) || has(data_encoding::HEXLOWER.encode(marker).as_bytes())
    });
    let (cut, _, hold) = if is_here { armed.take()? } else { return None };
    state.held.send_if_modified(|held| {
        *held |= hold;
        hold
    });
    Some(cut)
}

async fn forward(mut client: TcpStream, mut server: TcpStream, state: &State) {
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(n @ 1..) = read else { return };
                match cut_in(&up[..n], state) {
                    Some(Cut::Question) => return,
                    Some(Cut::Answer) => {
                        server.write_all(&up[..n]).await.unwrap();
                        drop(client);
                        // The server does not notice.
                        while matches!(server.read(&mut down).await, Ok(1..)) {}
                        return;
                    }
                    None => if server.write_all(&up[..n]).await.is_err() { return },
                }
            }
            read = server.read(&mut down) => {
                let Ok(n @ 1..) = read else { return };
                if client.write_all(&down[..n]).await.is_err() { return }
            }
        }
    }
}
