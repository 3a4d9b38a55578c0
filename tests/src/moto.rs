//! A real `moto` server that stands for AWS KMS, and what an administrator of AWS does there.
//!
//! It must not know Nimbus. The server ends when its standard input does, and so with the test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use serde_json::{Value as Json, json};

use crate::python::python;

/// Prints its port, and stops when nobody holds the other end of its input any more.
const SCRIPT: &str = r#"
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"#;

/// The region that [`Moto`] is told of unless another is named.
pub const REGION: &str = "us-east-1";

/// One server; its keys live as long as it does.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    address: SocketAddr,
}

impl Moto {
    /// Starts a server on a free port and waits until it listens.
    pub fn start() -> Moto {
        let mut process = python()
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().expect("moto prints its port");
        Moto {
            process,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a symmetric encryption key and gives its ARN.
    pub fn create_key(&self, region: &str) -> String {
        let made = self.call(region, "CreateKey", &json!({}));
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// Points an alias, such as `alias/nimbus`, at a key.
    pub fn alias(&self, region: &str, alias: &str, key: &str) {
        let body = json!({"AliasName": alias, "TargetKeyId": key});
        self.call(region, "CreateAlias", &body);
    }

    /// One call of the KMS API, which has to succeed.
    pub fn call(&self, region: &str, operation: &str, body: &Json) -> Json {
        let scope = format!("Credential=test/20260101/{region}/kms/aws4_request");
        let mut reply = ureq::post(self.url())
            .header("x-amz-target", format!("TrentService.{operation}"))
            .header("content-type", "application/x-amz-json-1.1")
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=none"),
            )
            .send(body.to_string())
            .unwrap_or_else(|e| panic!("{operation}: {e}"));
        let text = reply.body_mut().read_to_string().unwrap();
        serde_json::from_str(&text).unwrap_or(Json::Null)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
