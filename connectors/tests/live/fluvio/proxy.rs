//! Stands between a client and a real cluster on this machine, and can take it away.
//!
//! Clients go where the controller says that the SPUs are, so their ports are replaced by those of
//! proxies in each of its answers.

use fluvio::Fluvio;
use fluvio::dataplane::Encoder;
use fluvio::metadata::spu::SpuSpec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How connections are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Everything passes.
    Open,
    /// Connections are cut.
    Away,
    /// What is sent arrives; the answer to it is lost, and the connection cut.
    Deaf,
    /// Nothing passes, and nothing is cut.
    Silent,
}

/// The proxies of the controller and of each SPU; they end with this value.
pub(crate) struct Proxy {
    /// Where the controller is to be found.
    pub(crate) endpoint: String,
    mood: watch::Sender<Mood>,
    tasks: Vec<JoinHandle<()>>,
}

type Ports = Vec<(Vec<u8>, Vec<u8>)>;

impl Proxy {
    pub(crate) async fn start(controller: &str, client: &Fluvio) -> Self {
        let mood = watch::Sender::new(Mood::Open);
        let mut tasks = Vec::new();
        let mut ports = Ports::new();
        for spu in client.admin().await.all::<SpuSpec>().await.unwrap() {
            let theirs = spu.spec.public_endpoint;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut ours = theirs.clone();
            ours.port = listener.local_addr().unwrap().port();
            let address = theirs.addr();
            assert!(address.starts_with("127.0.0.1:"), "an SPU is elsewhere: {address}");
            let bytes = |port: &dyn Fn(&mut Vec<u8>)| {
                let mut bytes = Vec::new();
                port(&mut bytes);
                bytes
            };
            ports.push((
                bytes(&|to| theirs.encode(to, 0).unwrap()),
                bytes(&|to| ours.encode(to, 0).unwrap()),
            ));
            tasks.push(tokio::spawn(serve(listener, address, Ports::new(), mood.clone())));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        tasks.push(tokio::spawn(serve(listener, controller.to_owned(), ports, mood.clone())));
        Self { endpoint, mood, tasks }
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve(listener: TcpListener, server: String, ports: Ports, mood: watch::Sender<Mood>) {
    while let Ok((client, _)) = listener.accept().await {
        let (server, ports, mood) = (server.clone(), ports.clone(), mood.clone());
        tokio::spawn(async move {
            let mut changed = mood.subscribe();
            if *mood.borrow() == Mood::Away {
                return;
            }
            let Ok(server) = TcpStream::connect(server).await else { return };
            tokio::select! {
                () = pass(client, server, ports, mood) => {}
                _ = changed.wait_for(|mood| *mood == Mood::Away) => {}
            }
        });
    }
}

async fn pass(client: TcpStream, server: TcpStream, ports: Ports, mood: watch::Sender<Mood>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut silent = mood.subscribe();
    let requests = async {
        let mut bytes = vec![0; 65_536];
        while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
            silent.wait_for(|mood| *mood != Mood::Silent).await.unwrap();
            if to_server.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
    };
    let mut silent = mood.subscribe();
    let answers = async {
        while let Ok(length) = from_server.read_u32().await {
            let mut frame = vec![0; length as usize];
            if from_server.read_exact(&mut frame).await.is_err() {
                return;
            }
            silent.wait_for(|mood| *mood != Mood::Silent).await.unwrap();
            if *mood.borrow() == Mood::Deaf {
                return;
            }
            for (theirs, ours) in &ports {
                let places = 0..frame.len().saturating_sub(theirs.len() - 1);
                let places: Vec<usize> =
                    places.filter(|at| frame[*at..].starts_with(theirs)).collect();
                for at in places {
                    frame[at..at + ours.len()].copy_from_slice(ours);
                }
            }
            if to_client.write_u32(length).await.is_err()
                || to_client.write_all(&frame).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
