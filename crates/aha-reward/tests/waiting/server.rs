//! A small HTTP server that does what a test tells it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// What is done with a request.
#[derive(Clone)]
pub enum Reply {
    /// A whole reply: status, headers, body.
    Whole(u16, &'static str, String),
    /// Headers that promise more than the body holds.
    CutOff,
    /// Bytes that are no HTTP.
    Garbage,
    /// Nothing, until the other side leaves.
    Hang,
}

impl Reply {
    pub fn ok(json: &Value) -> Reply {
        Reply::Whole(200, "", json.to_string())
    }

    pub fn status(status: u16) -> Reply {
        Reply::Whole(status, "", "out of order".to_owned())
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    pub headers: String,
    pub body: Value,
}

/// Listens until the test is over.
pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Does with the request of each number, from 0, what `reply` says.
    pub fn start(reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (reply, seen) = (Arc::new(reply), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (reply, seen) = (Arc::clone(&reply), Arc::clone(&seen));
                let stream = stream.unwrap();
                thread::spawn(move || serve(stream, &seen, reply.as_ref()));
            }
        });
        Server { url, requests }
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    reply: &(dyn Fn(usize, &Request) -> Reply + Send + Sync),
) {
    let Some(request) = read(&stream) else { return };
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    // The other side may have left already.
    let _ = match reply(number, &request) {
        Reply::Whole(status, headers, body) => write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
            body.len()
        ),
        Reply::CutOff => {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{{\"score\": 1}}")
        }
        Reply::Garbage => write!(stream, "\u{0}\u{1}nonsense\r\n\r\n"),
        Reply::Hang => stream.read(&mut [0; 1]).map(|_| ()),
    };
    let _ = stream.shutdown(Shutdown::Both);
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut headers) = (String::new(), String::new());
    reader.read_line(&mut line).ok()?;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).ok()? == 0 {
            return None;
        }
        if header == "\r\n" {
            break;
        }
        headers.push_str(&header.to_lowercase());
    }
    let len = headers.lines().find_map(|header| header.strip_prefix("content-length: "))?;
    let mut body = vec![0; len.trim().parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(Request { line, headers, body: serde_json::from_slice(&body).ok()? })
}
