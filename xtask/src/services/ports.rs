//! Free ports, chosen once and remembered.

use super::{Service, State};
use anyhow::{Result, bail};
use rand::Rng;
use std::net::{Ipv4Addr, TcpListener};

/// Below Linux's range for outgoing connections, which would take a port between choice and use.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Gives each service its ports: the remembered ones while they are free, else new ones.
pub(super) fn assign(state: &mut State, services: &[Service]) -> Result<()> {
    let mut held: Vec<TcpListener> = Vec::new(); // Held until all are chosen, so that none is given twice.
    for service in services {
        let remembered = state.ports.get(service).cloned().unwrap_or_default();
        let listeners: Vec<TcpListener> =
            remembered.iter().filter_map(|port| listen(*port)).collect();
        if listeners.len() == service.ports() {
            held.extend(listeners);
            continue;
        }
        drop(listeners);
        let mut chosen = Vec::new();
        for _ in 0..service.ports() {
            let (port, listener) = choose()?;
            chosen.push(port);
            held.push(listener);
        }
        state.ports.insert(*service, chosen);
    }
    Ok(())
}

fn choose() -> Result<(u16, TcpListener)> {
    let mut rng = rand::rng();
    for _ in 0..200 {
        let port = rng.random_range(RANGE);
        if let Some(listener) = listen(port) {
            return Ok((port, listener));
        }
    }
    bail!("no free port found from {} to {}", RANGE.start, RANGE.end)
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
}
