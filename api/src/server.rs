//! The listening socket, until it is told to stop.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Longest wait for answers under way once it was told to stop. Every answer has its own limit; this
/// one is for clients that never finish asking.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Serves `router` on `listener` until `shutdown` is ready and the answers under way are given.
///
/// Whoever made the listener has asked [`crate::check_bind`] first.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "no nodelay");
        }
    });
    let (stopping, stopped) = oneshot::channel::<()>();
    let signal = async move {
        shutdown.await;
        drop(stopping);
    };
    let drain_over = async move {
        // Ends when the sender is dropped, which says that the signal came.
        if stopped.await.is_err() {
            tokio::time::sleep(DRAIN_MAX).await;
        }
    };
    tokio::select! {
        served = axum::serve(listener, router).with_graceful_shutdown(signal).into_future() => served,
        () = drain_over => {
            tracing::warn!(waited_s = DRAIN_MAX.as_secs(), "requests under way were cut off");
            Ok(())
        }
    }
}
