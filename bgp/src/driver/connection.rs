//! One connection: a task that reads, frames and decodes, and beside that writes.
//!
//! Back-pressure towards the peer: at most [`BATCHES_IN_FLIGHT`] decoded batches of a connection
//! wait for the speaker; until one was processed the task does not read, and TCP holds the peer
//! back. Towards the speaker: it sends UPDATEs only after [`Input::Writable`], so what waits here
//! to be written is one such portion, and the few short messages of a session.

use std::{collections::VecDeque, io, pin::pin, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::{socket, speaker_task::Input};
use crate::{
    message::{Message, Negotiated, Notification},
    speaker::config::{Password, PeerConfig},
    types::ConnectionId,
    wire,
};

/// Octets asked of the kernel at once.
const READ_SIZE: usize = 64 * 1024;
/// Decoded batches of one connection that wait for the speaker.
const BATCHES_IN_FLIGHT: usize = 2;
/// Messages in a batch, so that one of tiny UPDATEs is bounded work too.
const MESSAGES_PER_BATCH: usize = 512;
/// How long a closing connection may take to write its last messages and to be read empty.
const LINGER: Duration = Duration::from_secs(1);

/// What the speaker tells a connection.
#[derive(Debug)]
pub(super) enum Control {
    Send(Vec<u8>),
    Negotiated(Arc<Negotiated>),
    /// The TCP MD5 key changes under the connection.
    Password {
        peer: Arc<PeerConfig>,
        password: Password,
    },
    Close,
}

/// Decoded messages on the way to the speaker.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) messages: Vec<Result<Message, Notification>>,
    pub(super) octets: u64,
    /// Dropped when the batch was processed: lets the connection read on.
    pub(super) _slot: OwnedSemaphorePermit,
}

/// Runs a connection to its end.
pub(super) async fn run(
    connection: ConnectionId,
    stream: TcpStream,
    mut control: mpsc::UnboundedReceiver<Control>,
    inputs: mpsc::Sender<Input>,
) {
    let (mut read, mut write) = stream.into_split();
    let (agree, agreed) = oneshot::channel();
    let ended = {
        let mut reader = pin!(read_loop(connection, &mut read, agreed, &inputs));
        let mut writer = pin!(write_loop(
            connection,
            &mut write,
            &mut control,
            agree,
            &inputs
        ));
        tokio::select! {
            ended = &mut reader => ended,
            ended = &mut writer => {
                if matches!(ended, Ended::Lost(_)) {
                    // What the peer sent before it went, such as the NOTIFICATION that says why, is
                    // still there to be read.
                    let _ = timeout(LINGER, reader).await;
                }
                ended
            }
        }
    };
    match ended {
        Ended::Lost(reason) => {
            let _ = inputs.send(Input::Closed { connection, reason }).await;
        }
        Ended::Closing => {
            // Unread octets would turn the close into a reset, and a reset makes the peer lose our
            // last NOTIFICATION.
            let _ = timeout(LINGER, async {
                write.shutdown().await?;
                let mut sink = vec![0; 4096];
                while read.read(&mut sink).await? > 0 {}
                io::Result::Ok(())
            })
            .await;
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    Lost(String),
    /// The speaker wanted it, and everything is written or the time for it is over.
    Closing,
}

async fn read_loop(
    connection: ConnectionId,
    read: &mut (impl AsyncRead + Unpin),
    agreed: oneshot::Receiver<Arc<Negotiated>>,
    inputs: &mpsc::Sender<Input>,
) -> Ended {
    let slots = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT));
    let mut agreed = Some(agreed);
    let mut decoder = wire::Decoder::new();
    let mut buffer = BytesMut::with_capacity(READ_SIZE);
    let mut octets = 0;
    loop {
        let mut messages = Vec::new();
        let mut good = true;
        let mut open_received = false;
        while good && !open_received && messages.len() < MESSAGES_PER_BATCH {
            match wire::frame(&buffer, decoder.max_message_size()) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    let message = buffer.get(..length).map(|octets| decoder.decode(octets));
                    let Some(message) = message else { break };
                    good = message.is_ok();
                    open_received = matches!(message, Ok(Message::Open(_)));
                    messages.push(message);
                    buffer.advance(length);
                }
                Err(notification) => {
                    good = false;
                    messages.push(Err(notification));
                }
            }
        }
        let full = messages.len() >= MESSAGES_PER_BATCH;
        if !messages.is_empty() {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return Ended::Lost("internal error".into());
            };
            let batch = Batch {
                messages,
                octets: std::mem::take(&mut octets),
                _slot: slot,
            };
            if inputs
                .send(Input::Messages { connection, batch })
                .await
                .is_err()
            {
                return Ended::Lost("the speaker has stopped".into());
            }
        }
        if !good {
            // Nothing after this can be trusted; the speaker closes the connection.
            std::future::pending::<()>().await;
        }
        if open_received {
            // A second OPEN is an error that the speaker answers by closing.
            if let Some(agreed) = agreed.take() {
                match agreed.await {
                    Ok(negotiated) => decoder.set_negotiated((*negotiated).clone()),
                    Err(_) => std::future::pending().await,
                }
            }
        }
        if full || open_received {
            continue;
        }
        buffer.reserve(READ_SIZE);
        match read.read_buf(&mut buffer).await {
            Ok(0) => return Ended::Lost("closed by the peer".into()),
            Ok(count) => octets += count as u64,
            Err(error) => return Ended::Lost(error.to_string()),
        }
    }
}

async fn write_loop(
    connection: ConnectionId,
    write: &mut OwnedWriteHalf,
    control: &mut mpsc::UnboundedReceiver<Control>,
    agree: oneshot::Sender<Arc<Negotiated>>,
    inputs: &mpsc::Sender<Input>,
) -> Ended {
    let mut agree = Some(agree);
    let mut queue: VecDeque<io::Cursor<Vec<u8>>> = VecDeque::new();
    let mut written = 0u64;
    let mut closing: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            order = control.recv(), if closing.is_none() => match order {
                Some(Control::Send(octets)) => queue.push_back(io::Cursor::new(octets)),
                Some(Control::Negotiated(negotiated)) => {
                    if let Some(agree) = agree.take() {
                        // The reader is gone only when the connection is.
                        let _ = agree.send(negotiated);
                    }
                }
                Some(Control::Password { peer, password }) => {
                    if let Err(error) = rekey(write, &peer, &password) {
                        tracing::warn!(peer = peer.name, %error, "the new key is not in use yet");
                    }
                }
                Some(Control::Close) | None => closing = Some(Instant::now() + LINGER),
            },
            result = write_some(write, &mut queue), if !queue.is_empty() => match result {
                Ok(count) => {
                    written += count;
                    if queue.is_empty() && closing.is_none() {
                        let octets = std::mem::take(&mut written);
                        if inputs.send(Input::Writable { connection, octets }).await.is_err() {
                            return Ended::Closing;
                        }
                    }
                }
                Err(error) => return Ended::Lost(error.to_string()),
            },
            () = deadline(closing) => return Ended::Closing,
        }
        if closing.is_some() && queue.is_empty() {
            return Ended::Closing;
        }
    }
}

fn rekey(write: &OwnedWriteHalf, peer: &PeerConfig, password: &Password) -> io::Result<()> {
    let whole = IpNet::from(peer.address);
    socket::set_password(write.as_ref(), whole, peer.scope_id, Some(password))
}

/// Writes what the kernel takes of the first entry. Safe to drop at any await.
async fn write_some(
    write: &mut (impl AsyncWrite + Unpin),
    queue: &mut VecDeque<io::Cursor<Vec<u8>>>,
) -> io::Result<u64> {
    let Some(first) = queue.front_mut() else {
        return Ok(0);
    };
    let count = write.write_buf(first).await?;
    if !first.has_remaining() {
        queue.pop_front();
    }
    if count == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(count as u64)
}

async fn deadline(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_notification_is_read_although_the_peer_takes_nothing_any_more() {
        // Whether reading or writing comes first is left to chance.
        for _ in 0..20 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            // With this unread the peer's close is a reset.
            stream.write_all(&[0xff; 19]).await.unwrap();
            let mut octets = Vec::new();
            wire::encode_notification(&mut octets, &Notification::administrative_reset("why"));
            peer.write_all(&octets).unwrap();
            drop(peer);

            let (orders, control) = mpsc::unbounded_channel();
            orders.send(Control::Send(vec![0xff; 19])).unwrap();
            let (inputs, mut received) = mpsc::channel(16);
            run(ConnectionId(1), stream, control, inputs).await;
            let mut seen = Vec::new();
            while let Some(input) = received.recv().await {
                seen.push(match input {
                    Input::Messages { batch, .. } => format!("{:?}", batch.messages),
                    Input::Closed { .. } => "closed".to_owned(),
                    _ => "other".to_owned(),
                });
            }
            assert!(
                seen.iter().any(|input| input.contains("Notification")),
                "{seen:?}"
            );
            assert_eq!(seen.last().map(String::as_str), Some("closed"));
        }
    }
}
