//! The baseline of reads: an axum server that answers every request with one text.
//!
//! It must not know Nimbus.

use anyhow::Result;
use axum::routing::get;
use axum::serve::ListenerExt as _;

/// Serves on a free port of the loopback interface until the process is ended.
pub(crate) fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        // The words that the driver waits for, as the Nimbus server says them.
        eprintln!("listening on http://{}", listener.local_addr()?);
        let listener = listener.tap_io(|stream| {
            // A connection without it still answers, only later.
            let _ = stream.set_nodelay(true);
        });
        let app = axum::Router::new().route("/", get(|| async { "Hello, World!" }));
        axum::serve(listener, app).await?;
        Ok(())
    })
}
