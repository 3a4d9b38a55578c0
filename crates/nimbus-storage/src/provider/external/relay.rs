//! TCP connections on which nothing waits to be sent, for clients that offer no such setting.
//!
//! Must not know what goes over them. sqlx 0.9 opens its sockets itself and leaves Nagle's algorithm on (RFC 896): a
//! batch that does not go out in one piece waits for the server's delayed acknowledgement, 40 ms on Linux. So the
//! connection is made here, with `TCP_NODELAY`, and the client is given a Unix socket of this process that leads
//! to it. The socket's name is in no file system, and nobody else gets through it.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::control::RandomId;

/// Bytes that are carried at once, each way.
const BUFFER: usize = 32 * 1024;
/// How long the client may take to come for its connection.
const CLIENT_WITHIN: Duration = Duration::from_secs(5);
/// Said once, and not for every connection.
static WARN: Once = Once::new();

/// Connects to a server; the path of the Unix socket through which the client that connects first has the
/// connection. The client adds `suffix` to the path by itself. `None`, and the client has to connect by itself, where no
/// such socket can be made: on other systems than Linux, and in services that may not have any.
///
/// # Errors
/// What connecting says.
pub(crate) async fn connect(host: &str, port: u16, suffix: &str) -> io::Result<Option<PathBuf>> {
    let server = connect_server(host, port).await?;
    let id = RandomId::generate().map_err(io::Error::other)?;
    let name = format!("nimbus-{id}");
    match open_door(&format!("{name}{suffix}")) {
        Ok(door) => {
            tokio::spawn(run(door, server));
            // A path that begins with NUL is an abstract name.
            Ok(Some(PathBuf::from(format!("\0{name}"))))
        }
        Err(error) => {
            WARN.call_once(|| {
                tracing::warn!(%error, "no Unix socket can be made here (RestrictAddressFamilies without AF_UNIX?), so commits to the database wait for delayed acknowledgements");
            });
            Ok(None)
        }
    }
}

fn open_door(name: &str) -> io::Result<UnixListener> {
    let door = StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    door.set_nonblocking(true)?;
    UnixListener::from_std(door)
}

async fn connect_server(host: &str, port: u16) -> io::Result<TcpStream> {
    // An address of IPv6 stands in brackets in a URL.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let server = TcpStream::connect((host, port)).await?;
    server.set_nodelay(true)?;
    Ok(server)
}

async fn run(door: UnixListener, server: TcpStream) {
    let client = tokio::time::timeout(CLIENT_WITHIN, own_client(&door)).await;
    drop(door);
    match client {
        Ok(Ok(client)) => carry(client, server).await,
        Ok(Err(error)) => tracing::warn!(%error, "handing on a connection to the database"),
        // It gave up before it came.
        Err(_) => {}
    }
}

/// The first connection that this process made. Anybody in the same network namespace could try.
async fn own_client(door: &UnixListener) -> io::Result<UnixStream> {
    let this = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    loop {
        let (client, _) = door.accept().await?;
        if client.peer_cred()?.pid() == Some(this) {
            return Ok(client);
        }
    }
}

/// Carries what both send until one of them ends, and ends the other then, as if there were but one connection.
/// What was sent before the end has been handed on.
async fn carry(mut client: UnixStream, mut server: TcpStream) {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = copy(from_client, to_server) => {}
        () = copy(from_server, to_client) => {}
    }
}

/// Copies until an end or an error, which the other side sees alike: as the end of its connection.
async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut from = BufReader::with_capacity(BUFFER, from);
    let _ = tokio::io::copy_buf(&mut from, &mut to).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a connection that is carried.
    async fn pair() -> (UnixStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let path = connect("127.0.0.1", port, "/x").await.unwrap().unwrap();
        let path = format!("{}/x", path.display());
        let client = UnixStream::connect(path).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn all_bytes_arrive_both_ways_and_an_end_ends_both() {
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i * 7) as u8).collect();
        let (mut client, mut server) = pair().await;
        let writing = client.write_all(&sent);
        let mut received = vec![0; sent.len()];
        let (wrote, read) = tokio::join!(writing, server.read_exact(&mut received));
        wrote.unwrap();
        read.unwrap();
        assert!(received == sent);
        // What a server says before it ends arrives.
        server.write_all(&sent[..1000]).await.unwrap();
        drop(server);
        received.clear();
        client.read_to_end(&mut received).await.unwrap();
        assert!(received == sent[..1000]);

        let (mut client, mut server) = pair().await;
        client.write_all(b"bye").await.unwrap();
        drop(client);
        received.clear();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"bye");
    }

    #[tokio::test]
    async fn nothing_waits_for_an_acknowledgement() {
        for host in ["127.0.0.1", "[::1]"] {
            let listener = TcpListener::bind((host.trim_matches(['[', ']']), 0))
                .await
                .unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = connect_server(host, port).await.unwrap();
            assert!(server.nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn another_process_does_not_get_through() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let path = connect("127.0.0.1", port, "").await.unwrap().unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let name = path.to_str().unwrap().trim_start_matches('\0').to_owned();
        // Closed on it, whether it said something or not.
        let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0' + sys.argv[1])\n\
                      try: sys.exit(len(s.recv(1)))\nexcept ConnectionResetError: pass";
        let mut intruder = std::process::Command::new("python3");
        intruder.args(["-c", script, &name]);
        let ended = tokio::task::spawn_blocking(move || intruder.status());
        let status = ended.await.unwrap().unwrap();
        assert!(status.success(), "{status}");
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(b"ours").await.unwrap();
        drop(client);
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"ours");
    }

    #[tokio::test]
    async fn where_no_socket_can_be_made_the_client_connects_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // No name of a socket is that long.
        let path = connect("127.0.0.1", port, &"x".repeat(200)).await.unwrap();
        assert_eq!(path, None);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_as_before() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let refused = connect("127.0.0.1", port, "").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
