//! Signals: the first asks to stop, the second leaves at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(feature = "demo")]
use tokio::sync::mpsc;

/// What asks to stop, from the moment this was made.
#[derive(Debug)]
pub(crate) enum Signals {
    /// The process's own: SIGTERM and SIGINT.
    Process { terminate: Signal, interrupt: Signal },
    /// Another part of this process, which started this one.
    #[cfg(feature = "demo")]
    Told(mpsc::UnboundedReceiver<&'static str>),
}

/// Tells a part of this process to stop. Dropped, it tells so for ever.
#[cfg(feature = "demo")]
#[derive(Debug)]
pub(crate) struct Teller(mpsc::UnboundedSender<&'static str>);

impl Signals {
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self::Process {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(feature = "demo")]
    pub(crate) fn told() -> (Teller, Self) {
        let (teller, told) = mpsc::unbounded_channel();
        (Teller(teller), Self::Told(told))
    }

    /// Waits for the next one, and names it. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> &'static str {
        match self {
            Self::Process { terminate, interrupt } => tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            },
            #[cfg(feature = "demo")]
            Self::Told(told) => told.recv().await.unwrap_or("nobody is left to tell"),
        }
    }
}

#[cfg(feature = "demo")]
impl Teller {
    /// The same as a signal of this name.
    pub(crate) fn tell(&self, name: &'static str) {
        // A part that has ended needs no telling.
        self.0.send(name).ok();
    }
}
