//! A pooler in transaction mode, as unkind as one may be: whenever a transaction is over, its client's
//! next one, or any other's, gets another of the server's sessions.
//!
//! Each client brings one session with it, authenticated by the client itself. From then on sessions
//! are everybody's.

use std::io;
use std::sync::{Arc, Mutex};

use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Sessions of the server that no transaction is in, the one that was used last at the end.
type Idle = Arc<Mutex<Vec<TcpStream>>>;

/// A message: its type (zero for a start-up, which has none), and all of its bytes.
struct Message {
    kind: u8,
    bytes: Vec<u8>,
}

impl Message {
    async fn read(from: &mut TcpStream) -> io::Result<Self> {
        let kind = from.read_u8().await?;
        let mut message = Self::read_untyped(from).await?;
        message.kind = kind;
        message.bytes.insert(0, kind);
        Ok(message)
    }

    async fn read_untyped(from: &mut TcpStream) -> io::Result<Self> {
        let length = from.read_u32().await?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.resize(length as usize, 0);
        from.read_exact(&mut bytes[4..]).await?;
        Ok(Self { kind: 0, bytes })
    }

    /// Whether the server waits for the client: cleartext, MD5, SASL and its continuation.
    fn asks_who(&self) -> bool {
        self.kind == b'R' && [3, 5, 10, 11].contains(&self.bytes[8])
    }
}

/// Starts a pooler before the server at `host` and `port`, and gives its own port.
pub(crate) async fn start(host: String, port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let idle = Idle::default();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // A client that leaves ends its own task; the session it held goes with it.
            tokio::spawn(serve(client, (host.clone(), port), Arc::clone(&idle)));
        }
    });
    own
}

async fn serve(mut client: TcpStream, server: (String, u16), idle: Idle) -> io::Result<()> {
    let session = begin(&mut client, server).await?;
    idle.lock().unwrap().push(session);
    loop {
        let mut message = Message::read(&mut client).await?;
        let mut session = take(&idle).await;
        // Until the transaction is over.
        loop {
            if message.kind == b'X' {
                return Ok(());
            }
            session.write_all(&message.bytes).await?;
            if matches!(message.kind, b'Q' | b'S')
                && relay(&mut session, &mut client).await? == b'I'
            {
                break;
            }
            message = Message::read(&mut client).await?;
        }
        idle.lock().unwrap().push(session);
    }
}

/// One by chance, since any order may be in step with the clients' own; never the one that was used
/// last, unless it is the only one.
async fn take(idle: &Idle) -> TcpStream {
    loop {
        let taken = {
            let mut idle = idle.lock().unwrap();
            let others = idle.len().saturating_sub(1).max(1);
            let place = rand::rng().random_range(0..others);
            (place < idle.len()).then(|| idle.remove(place))
        };
        match taken {
            Some(session) => return session,
            None => tokio::task::yield_now().await,
        }
    }
}

/// Hands the client through to the server until it is let in.
async fn begin(client: &mut TcpStream, server: (String, u16)) -> io::Result<TcpStream> {
    let mut start = Message::read_untyped(client).await?;
    if start.bytes.len() == 8 {
        client.write_all(b"N").await?; // It asked for TLS.
        start = Message::read_untyped(client).await?;
    }
    let mut session = TcpStream::connect(server).await?;
    // Messages are written one by one.
    session.set_nodelay(true)?;
    client.set_nodelay(true)?;
    session.write_all(&start.bytes).await?;
    loop {
        let answer = Message::read(&mut session).await?;
        client.write_all(&answer.bytes).await?;
        if answer.asks_who() {
            session.write_all(&Message::read(client).await?.bytes).await?;
        }
        if answer.kind == b'Z' {
            return Ok(session);
        }
    }
}

/// Hands the answer to the client, and gives the state of the transaction after it.
async fn relay(session: &mut TcpStream, client: &mut TcpStream) -> io::Result<u8> {
    loop {
        let answer = Message::read(session).await?;
        client.write_all(&answer.bytes).await?;
        if answer.kind == b'Z' {
            return Ok(answer.bytes[5]);
        }
    }
}
