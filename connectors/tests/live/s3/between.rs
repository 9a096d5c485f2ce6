//! The real server, and something that happens between its answer to a HEAD and whoever asked.

use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Happens = dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Passes everything on as it is; after each answer to a HEAD, `happens`. Gives the address.
pub(crate) async fn start(real: String, happens: Arc<Happens>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (real, happens) = (real.clone(), Arc::clone(&happens));
            tokio::spawn(async move { relay(stream, &real, &*happens).await });
        }
    });
    endpoint
}

async fn relay(mut client: TcpStream, real: &str, happens: &Happens) -> Option<()> {
    let mut server = TcpStream::connect(real).await.unwrap();
    loop {
        let request = message(&mut client, false).await?;
        let is_head = request.starts_with(b"HEAD");
        server.write_all(&request).await.ok()?;
        let answer = message(&mut server, is_head).await?;
        if is_head {
            happens().await;
        }
        client.write_all(&answer).await.ok()?;
    }
}

/// A head, and the body that it announces unless there is none.
async fn message(stream: &mut TcpStream, is_bare: bool) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.filter(|_| !is_bare).map_or(0, |it| it.parse().unwrap());
            while bytes.len() < end + 4 + length {
                if stream.read_buf(&mut bytes).await.ok()? == 0 {
                    return None;
                }
            }
            return Some(bytes);
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
