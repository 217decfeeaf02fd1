//! Every endpoint, over a socket, before a VM on the fake hypervisor.

use std::{
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Api, ApiSocket, routes::ENDPOINTS};
use crate::{api::http::Method, control::tests::Bench};

/// A VMM with its API.
struct Server {
    bench: Bench,
    directory: TempDir,
    _api: Api,
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    fn code(&self) -> &str {
        self.head.lines().find_map(|line| line.strip_prefix("X-Cumulet-Error: ")).unwrap_or_default()
    }
}

impl Server {
    fn new() -> Self {
        let bench = Bench::new();
        let directory = tempfile::tempdir().unwrap();
        let socket = ApiSocket::bind(&directory.path().join("api")).unwrap();
        let api = Api::start(socket, bench.vmm.clone()).unwrap();
        Self { bench, directory, _api: api }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("api")).unwrap()
    }

    fn ask(&self, method: &str, name: &str, body: &str) -> Reply {
        self.send(method, &format!("/api/v1/{name}"), body)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Reply {
        let mut stream = self.connect();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = vec![0; 1 << 20];
        let mut length = stream.read(&mut bytes).unwrap();
        let whole = whole_length(&bytes[..length]);
        // An answer is one write, and up to this size one read as well; the kernel cuts longer ones.
        assert!(length == whole || whole > ONE_READ, "the first read has {length} of {whole} bytes");
        while length < whole {
            let more = stream.read(&mut bytes[length..]).unwrap();
            assert!(more > 0, "the answer ends after {length} of {whole} bytes");
            length += more;
        }
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head[9..12].parse().unwrap();
        Reply { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn put(&self, name: &str) -> u16 {
        self.ask("PUT", name, "").status
    }

    fn create(&self, said: &Value) -> Reply {
        let config = serde_json::to_string(&self.bench.said(said)).unwrap();
        self.ask("PUT", "vm.create", &config)
    }
}

/// Bytes of an answer that a client gets by one read, however large its buffer is.
const ONE_READ: usize = 32 << 10;

/// Bytes of the answer whose head, at least, these are.
fn whole_length(bytes: &[u8]) -> usize {
    let text = String::from_utf8_lossy(bytes);
    let (head, _) = text.split_once("\r\n\r\n").unwrap();
    let body = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    head.len() + 4 + body.map_or(0, |length| length.parse().unwrap())
}

/// A body that each endpoint which needs one can read.
fn body(name: &str) -> &'static str {
    match name {
        "vm.add-disk" => r#"{"path":"/nowhere","id":"extra"}"#,
        "vm.add-net" => r#"{"tap":"none0"}"#,
        "vm.add-device" => r#"{"path":"/sys/none"}"#,
        "vm.add-fs" => r#"{"tag":"a","socket":"/nowhere"}"#,
        "vm.add-generic-vhost-user" => r#"{"socket":"/nowhere","queue_sizes":[64],"device_type":26}"#,
        "vm.add-pmem" => r#"{"file":"/nowhere","id":"memory"}"#,
        "vm.add-user-device" => r#"{"socket":"/nowhere"}"#,
        "vm.add-vdpa" => r#"{"path":"/nowhere"}"#,
        "vm.add-vsock" => r#"{"cid":3,"socket":"/nowhere"}"#,
        "vm.remove-device" => r#"{"id":"none"}"#,
        "vm.resize" => "{}",
        "vm.resize-disk" => r#"{"id":"none","desired_size":1}"#,
        "vm.resize-zone" => r#"{"id":"none","desired_ram":1}"#,
        "vm.snapshot" | "vm.coredump" => r#"{"destination_url":"file:///nowhere"}"#,
        "vm.restore" => r#"{"source_url":"file:///nowhere"}"#,
        "vm.send-migration" => r#"{"destination_url":"unix:/nowhere"}"#,
        "vm.receive-migration" => r#"{"receiver_url":"unix:/nowhere"}"#,
        "vm.cancel-job" => r#"{"id":999}"#,
        _ => "",
    }
}

#[test]
fn every_endpoint_answers_in_every_state_as_clients_expect() {
    // Without a VM, created, running, paused. 0: not tried, because it leaves the state.
    let expected: &[(&str, [u16; 4])] = &[
        ("vmm.ping", [200, 200, 200, 200]),
        ("vm.info", [404, 200, 200, 200]),
        ("vm.counters", [500, 500, 200, 200]),
        ("vm.jobs", [200, 200, 200, 200]),
        ("metrics", [200, 200, 200, 200]),
        ("vm.boot", [404, 0, 500, 500]),
        ("vm.shutdown", [500, 500, 0, 0]),
        ("vm.reboot", [404, 404, 204, 0]),
        ("vm.pause", [500, 500, 0, 500]),
        ("vm.resume", [500, 500, 500, 0]),
        ("vm.power-button", [500, 500, 204, 204]),
        ("vm.nmi", [500, 500, 204, 204]),
        ("vm.resize", [404, 204, 204, 204]),
        ("vm.resize-disk", [404, 500, 404, 404]),
        ("vm.resize-zone", [404, 500, 500, 500]),
        ("vm.remove-device", [404, 404, 404, 404]),
        ("vm.add-disk", [404, 204, 500, 500]),
        ("vm.add-pmem", [404, 204, 500, 500]),
        ("vm.snapshot", [500, 500, 500, 500]),
        ("vm.restore", [500, 500, 500, 500]),
        ("vm.send-migration", [500, 500, 500, 500]),
        ("vm.receive-migration", [500, 500, 500, 500]),
        ("vm.cancel-job", [404, 404, 404, 404]),
        ("vm.delete", [204, 0, 0, 0]),
    ];
    let server = Server::new();
    let check = |state: usize| {
        for (name, codes) in expected.iter().filter(|(_, codes)| codes[state] != 0) {
            let method = ENDPOINTS.iter().find(|endpoint| endpoint.name == *name).unwrap().method();
            let method = if method == Method::Get { "GET" } else { "PUT" };
            let reply = server.ask(method, name, body(name));
            assert_eq!(reply.status, codes[state], "{name} in state {state}: {reply:?}");
            assert_eq!(reply.code().is_empty(), reply.status < 300, "{reply:?}");
        }
    };
    check(0);
    assert_eq!(server.create(&json!({})).status, 204);
    check(1);
    assert_eq!(server.create(&json!({})).status, 500);
    for added in [r#"{"id":"extra"}"#, r#"{"id":"memory"}"#] {
        assert_eq!(server.ask("PUT", "vm.remove-device", added).status, 204);
    }
    assert_eq!(server.put("vm.boot"), 204);
    check(2);
    assert_eq!(server.put("vm.pause"), 204);
    check(3);
    assert_eq!(server.put("vm.resume"), 204);
    assert_eq!(server.put("vm.shutdown"), 204);
    assert_eq!(server.put("vm.boot"), 204);
    assert_eq!(server.put("vm.delete"), 204);
    assert_eq!(server.ask("GET", "vm.info", "").status, 404);
}

#[test]
fn requests_that_do_not_fit_are_refused_as_clients_know_it() {
    let server = Server::new();
    let words = |method: &str, name: &str, body: &str| {
        let reply = server.ask(method, name, body);
        (reply.status, reply.body)
    };
    let bad = || (400, r#"["Bad Request"]"#.to_owned());
    let silent = || (400, String::new());
    for endpoint in ENDPOINTS {
        let name = endpoint.name;
        let is_get = endpoint.method() == Method::Get;
        assert_eq!(words(if is_get { "PUT" } else { "GET" }, name, ""), bad(), "{name}");
        let speaks = ["vm.create", "vm.info", "vmm.ping", "vmm.shutdown"].contains(&name);
        for method in ["PATCH", "DELETE"] {
            assert_eq!(words(method, name, ""), if speaks { bad() } else { silent() }, "{method} {name}");
        }
        if body(name).is_empty() && !["vmm.shutdown", "vm.create"].contains(&name) {
            assert_eq!(words(if is_get { "GET" } else { "PUT" }, name, "{}"), bad(), "{name} with a body");
        } else if !body(name).is_empty() {
            assert_eq!(words("PUT", name, ""), bad(), "{name} without a body");
        }
    }
    assert_eq!(words("PUT", "vm.create", ""), silent());
    assert!(server.ask("PUT", "vm.create", "").head.contains("Content-Length: 0"));
    for path in ["/", "", "/api/v1", "/api/v1/", "/api/v1/vm.info/", "/api/v1/vm.info?x=1", "/api/v2/vm.info"]
    {
        let reply = server.send("GET", &format!("http://localhost{path}"), "");
        assert_eq!((reply.status, reply.body.as_str()), (404, r#"["Not Found"]"#), "{path}");
    }
    assert_eq!(server.send("GET", "http://any.host/api/v1/vmm.ping", "").status, 200);
    assert_eq!(server.ask("POST", "vmm.ping", "").head.lines().nth(1), Some("Server: Firecracker API"));
    let reply = server.ask("PUT", "vm.create", "{");
    assert_eq!((reply.status, reply.json()[0].as_str()), (400, Some("Failed to deserialize JSON")));
    assert_eq!(reply.code(), "invalid-json");
    // The numbers of the descriptors do not agree.
    let restore = r#"{"source_url":"file:///x","net_fds":[{"id":"a","num_fds":2}]}"#;
    assert_eq!(words("PUT", "vm.restore", restore), bad());
    let huge = r#"{"source_url":"file:///x","net_fds":[{"id":"a","num_fds":18446744073709551615},{"id":"b","num_fds":5}]}"#;
    assert_eq!(words("PUT", "vm.restore", huge), bad());
}

#[test]
fn errors_are_chains_with_a_code() {
    let server = Server::new();
    let chain = |reply: Reply| (reply.status, reply.code().to_owned(), reply.body);
    assert_eq!(
        chain(server.ask("PUT", "vm.boot", "")),
        (
            404,
            "vm-not-created".into(),
            r#"["Error from API","The VM could not boot","VM config is missing"]"#.into()
        )
    );
    assert_eq!(
        chain(server.ask("GET", "vm.info", "")),
        (
            404,
            "vm-not-created".into(),
            r#"["Error from API","The VM info is not available","VM is not created"]"#.into()
        )
    );
    server.create(&json!({ "disks": [{ "path": "/a", "id": "a" }, { "path": "/b", "id": "a" }] }));
    let (status, code, body) = chain(server.ask("PUT", "vm.boot", ""));
    assert_eq!((status, code.as_str()), (409, "config-conflict"));
    assert!(
        body.starts_with(r#"["Error from API","The VM could not boot","Failed to validate config","#),
        "{body}"
    );
}

#[test]
fn answers_that_are_read_at_once_are_short_unless_more_is_asked_for() {
    let server = Server::new();
    let ask = |header: &str, name: &str, body: &str| {
        let mut stream = server.connect();
        let length = body.len();
        let request =
            format!("PUT /api/v1/{name} HTTP/1.1\r\n{header}Content-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        // Whatever there is, until nothing more comes.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let unknown: String = (0..20).map(|n| format!("\"{n}{}\":0,", "x".repeat(100))).collect();
    let restore = format!("{{{unknown}\"source_url\":\"file:///{}\"}}", "nowhere/".repeat(400));
    let net = format!("{{\"vhost_mode\":\"{}\"}}", "x".repeat(5000));
    for (name, body) in [("vm.restore", &restore), ("vm.add-net", &net)] {
        let short = ask("", name, body);
        assert!(short.len() <= 1023, "{name}: {}", short.len());
        let text = String::from_utf8(short).unwrap();
        let said: Vec<String> = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert!(said.len() >= 2 && said.iter().any(|one| one.ends_with("...")), "{said:?}");
        for header in ["X-Cumulet-Report: full\r\n", "x-cumulet-report:Full\r\n"] {
            let whole = String::from_utf8(ask(header, name, body)).unwrap();
            let all: Vec<String> = serde_json::from_str(whole.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert!(whole.len() > 3000 && all.len() == said.len(), "{whole}");
        }
        assert!(ask("X-Cumulet-Report: brief\r\n", name, body).len() <= 1023);
    }
}

#[test]
fn a_mistake_is_told_as_one_before_what_is_not_there_yet() {
    let server = Server::new();
    server.create(&json!({}));
    let mistakes = [
        ("vm.add-vsock", r#"{"cid":1,"socket":"/s"}"#, ""),
        ("vm.add-fs", r#"{"tag":"a","socket":"/s"}"#, ""),
        ("vm.add-device", r#"{}"#, r#"{"path":"/sys/none"}"#),
        ("vm.add-user-device", r#"{"socket":"/s","iommu":true}"#, ""),
        (
            "vm.add-generic-vhost-user",
            r#"{"socket":"/s","queue_sizes":[64],"device_type":26,"iommu":true}"#,
            "",
        ),
        ("vm.add-net", r#"{"num_queues":3,"vhost_user":true,"vhost_socket":"/s"}"#, ""),
        ("vm.add-disk", r#"{"vhost_user":true}"#, ""),
        ("vm.add-pmem", r#"{"file":"/f","pci_segment":9}"#, ""),
        ("vm.add-vdpa", r#"{"path":"/v","pci_device_id":32}"#, r#"{"path":"/v"}"#),
    ];
    let check = || {
        for (name, mistake, right) in mistakes {
            let reply = server.ask("PUT", name, mistake);
            assert_eq!((reply.status, reply.code()), (400, "config-invalid"), "{name}: {reply:?}");
            if !right.is_empty() {
                let reply = server.ask("PUT", name, right);
                assert_eq!((reply.status, reply.code()), (500, "unsupported"), "{name}: {reply:?}");
            }
        }
    };
    check();
    assert_eq!(server.put("vm.boot"), 204);
    check();
    assert_eq!(server.put("vm.delete"), 204);
    // What is missing to boot is told before what is missing here.
    assert_eq!(server.ask("PUT", "vm.create", r#"{"watchdog":true}"#).status, 204);
    let reply = server.ask("PUT", "vm.boot", "");
    assert_eq!((reply.status, reply.code()), (400, "config-invalid"), "{reply:?}");
}

/// A pipe's end to hand over, and the other, which tells when nobody has it any more.
fn handed_over() -> (std::os::fd::OwnedFd, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer.into(), reader)
}

#[test]
fn descriptors_come_with_requests_as_these_announce_them() {
    let server = Server::new();
    server.create(&json!({}));
    let ask = |name: &str, body: &str, count: usize| {
        let mut client = api_client::Client::over(server.connect());
        let (writer, _reader) = handed_over();
        let descriptors = vec![writer.as_fd(); count];
        match client.request(api_client::Method::Put, name, Some(body.as_bytes()), &descriptors) {
            Ok(answer) => (answer.status(), String::new()),
            Err(api_client::ClientError::Refused(refusal)) => (refusal.status, refusal.code.unwrap()),
            Err(other) => panic!("{name}: {other}"),
        }
    };
    let refused = |status: u16, code: &str| (status, code.to_owned());
    // A device of the host has one, or none; one is of use only beside an iommufd.
    let device = r#"{"path":"/sys/none"}"#;
    assert_eq!(ask("vm.add-device", device, 0), refused(500, "unsupported"));
    assert_eq!(ask("vm.add-device", device, 1), refused(400, "config-invalid"));
    assert_eq!(ask("vm.add-device", "{}", 1), refused(400, "config-invalid"));
    for count in [2, 253] {
        assert_eq!(ask("vm.add-device", device, count), refused(400, "descriptor-count"));
    }
    // A pair of queues has one.
    let net = |queues: usize| json!({ "num_queues": queues, "fds": [3] }).to_string();
    assert_eq!(ask("vm.add-net", &net(2), 2), refused(400, "config-invalid"));
    assert_eq!(ask("vm.add-net", &net(4), 1), refused(400, "config-invalid"));
    assert_eq!(ask("vm.add-net", &net(2), 1), (204, String::new()));
    assert_eq!(server.put("vm.delete"), 204);

    let (nets, host) = (r#""net_fds":[{"id":"a","num_fds":2}]"#, r#""vfio_fds":[{"id":"v"},{"id":"w"}]"#);
    let restore = |more: &str| format!(r#"{{"source_url":"file:///nowhere",{more}}}"#);
    let receive = |more: &str| format!(r#"{{"receiver_url":"unix:/nowhere"{more}}}"#);
    for (name, body, right, then) in [
        ("vm.restore", restore(nets), 2, "snapshot-unusable"),
        ("vm.restore", restore(r#""vfio_fds":[]"#), 1, "snapshot-unusable"),
        ("vm.restore", restore(&format!("{nets},{host}")), 5, "snapshot-unusable"),
        ("vm.receive-migration", receive(""), 0, "unsupported"),
        ("vm.receive-migration", receive(r#","vfio_fds":null"#), 0, "unsupported"),
        ("vm.receive-migration", receive(r#","vfio_fds":[]"#), 1, "unsupported"),
        ("vm.receive-migration", receive(&format!(",{host}")), 3, "unsupported"),
    ] {
        for count in 0..7 {
            let expected = if count == right { refused(500, then) } else { refused(400, "descriptor-count") };
            assert_eq!(ask(name, &body, count), expected, "{name} {body} with {count}");
        }
    }
}

#[test]
fn descriptors_that_an_endpoint_has_no_use_for_are_closed_and_numbers_are_none() {
    let server = Server::new();
    let config = json!({ "net": [{ "id": "n", "fds": [0, 1], "num_queues": 2 }], "devices": [{ "fd": 0 }],
        "platform": { "iommufd": true, "iommufd_fd": 1 } });
    let config = serde_json::to_string(&server.bench.said(&config)).unwrap();
    for (name, body) in [
        ("vm.create", config.as_str()),
        ("vm.add-disk", r#"{"path":"/nowhere","id":"extra"}"#),
        ("vm.resize", "{}"),
        ("vm.remove-device", r#"{"id":"n"}"#),
    ] {
        let (writer, mut reader) = handed_over();
        let mut client = api_client::Client::over(server.connect());
        let sent = client.request(api_client::Method::Put, name, Some(body.as_bytes()), &[writer.as_fd()]);
        drop(writer);
        // Whether it was done or not: the end comes when nobody has the other end.
        assert!(matches!(sent, Ok(_) | Err(api_client::ClientError::Refused(_))), "{name}: {sent:?}");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{name}");
        if name == "vm.create" {
            let config = server.ask("GET", "vm.info", "").json()["config"].clone();
            assert!(config["net"][0]["fds"].is_null() && config["devices"][0]["fd"].is_null(), "{config}");
            assert!(config["platform"]["iommufd_fd"].is_null(), "{config}");
        }
    }
}

#[test]
fn the_document_has_every_endpoint_and_every_status() {
    let server = Server::new();
    let document = server.ask("GET", "openapi.json", "").json();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), ENDPOINTS.len());
    for endpoint in ENDPOINTS {
        let method = if endpoint.method() == Method::Get { "get" } else { "put" };
        let operation = &paths[&format!("/{}", endpoint.name)][method];
        assert!(operation.is_object(), "{} has no {method}", endpoint.name);
        assert_eq!(operation["requestBody"].is_object(), endpoint.takes_body(), "{}", endpoint.name);
        let response = |status: u16| {
            let response = &operation["responses"][status.to_string()];
            let place = response["$ref"].as_str().and_then(|place| place.strip_prefix('#'));
            place.map_or(Some(response), |place| document.pointer(place)).filter(|known| known.is_object())
        };
        let known = |status: u16| response(status).is_some();
        let body = body(endpoint.name);
        let body = if endpoint.name == "vm.create" { "{}" } else { body };
        // Without a VM and with one; nonsense; the wrong method.
        for body in [body, "[", ""] {
            if endpoint.name != "vmm.shutdown" {
                let reply = server.ask(&method.to_uppercase(), endpoint.name, body);
                let known = response(reply.status);
                assert!(known.is_some(), "{}: {}", endpoint.name, reply.status);
                let names = reply.head.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name);
                for name in names.filter(|name| name.starts_with("X-Cumulet-")) {
                    let named = known.is_some_and(|known| known["headers"][name].is_object());
                    assert!(named, "{}: {} with {name}", endpoint.name, reply.status);
                }
            }
        }
        assert!(known(400), "{}", endpoint.name);
    }
}

#[test]
fn metrics_are_in_the_form_that_prometheus_reads() {
    let server = Server::new();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    server.create(&json!({ "disks": [{ "path": image.path(), "id": "a" }, { "path": image.path(), "id": "b", "readonly": true }] }));
    let twice = server.put("vm.boot");
    assert_eq!(twice, 500, "one image cannot be written and read");
    server.ask("PUT", "vm.remove-device", r#"{"id":"b"}"#);
    assert_eq!(server.put("vm.boot"), 204);
    let reply = server.ask("GET", "metrics", "");
    assert!(reply.head.contains("Content-Type: text/plain; version=0.0.4"), "{}", reply.head);
    let (mut families, mut last) = (Vec::new(), "");
    for line in reply.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            last = rest.split(' ').next().unwrap();
            assert!(!families.contains(&last), "{last} is there twice");
            families.push(last);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(name, last, "{line}");
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    for family in [
        "vm_state",
        "memory_bytes",
        "vcpu_exits_total",
        "commits_total",
        "commit_operations_total",
        "device_read_bytes_total",
        "job_milliseconds",
    ] {
        assert!(families.contains(&format!("cumulet_{family}").as_str()), "{family}: {families:?}");
    }
    assert!(reply.body.contains("cumulet_commits_total{result=\"done\"} 1\n"), "{}", reply.body);
    assert!(reply.body.contains("cumulet_device_read_ops_total{device=\"a\"} 0\n"), "{}", reply.body);
}

#[test]
fn unknown_fields_are_told_and_passed_over() {
    let server = Server::new();
    let mut config = serde_json::to_value(server.bench.said(&json!({}))).unwrap();
    config["serial"]["iommu"] = json!(false);
    let reply = server.ask("PUT", "vm.create", &config.to_string());
    assert_eq!(reply.status, 204);
    assert!(reply.head.contains("X-Cumulet-Unknown-Fields: serial.iommu"), "{}", reply.head);
}

#[test]
fn shapes_of_answers() {
    let server = Server::new();
    let ping = server.ask("GET", "vmm.ping", "").json();
    assert!(ping["version"].as_str().unwrap().ends_with(".0.0"), "{ping}");
    assert!(ping["build_version"].as_str().unwrap().starts_with('v'), "{ping}");
    assert_eq!((&ping["features"], &ping["pid"]), (&json!(["fake"]), &json!(std::process::id())));
    // The whole of what a client is told of a VM of which nothing was said.
    assert_eq!(server.ask("PUT", "vm.create", "{}").status, 204);
    let seen = r#"{"config":{"cpus":{"boot_vcpus":1,"max_vcpus":1,"kvm_hyperv":false,"max_phys_bits":46,"features":{"amx":false},"nested":true,"core_scheduling":"Vm","profile":"Host"},"memory":{"size":536870912,"mergeable":false,"hotplug_method":"Acpi","shared":false,"hugepages":false,"prefault":false,"reserve":false,"thp":true},"rng":{"pci_segment":0,"src":"/dev/urandom"},"serial":{"mode":"Null"},"console":{"mode":"Tty","pci_segment":0},"debug_console":{"mode":"Off","iobase":233},"pvpanic":false,"iommu":false,"watchdog":false,"landlock_enable":false},"state":"Created","memory_actual_size":536870912}"#;
    assert_eq!(server.ask("GET", "vm.info", "").body, seen);
}

#[test]
fn whoever_asks_is_answered_while_a_vm_boots() {
    let server = Server::new();
    server.create(&json!({}));
    server.bench.gate.shut();
    let mut boots = server.connect();
    boots.write_all(b"PUT /api/v1/vm.boot HTTP/1.1\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    for name in ["vmm.ping", "vm.info", "vm.jobs", "metrics"] {
        // The gate is shut: whoever waited for the boot would wait for ever.
        assert_eq!(server.ask("GET", name, "").status, 200);
    }
    let jobs = server.ask("GET", "vm.jobs", "").json();
    assert_eq!((&jobs[0]["kind"], &jobs[0]["state"]), (&json!("boot"), &json!("running")));
    server.bench.gate.open();
    let mut answer = [0; 200];
    let length = boots.read(&mut answer).unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 204 "));
}

/// Every question, with its answers without a VM, with one, and with one that is booted.
const QUESTIONS: [(&str, [u16; 3]); 5] = [
    ("vmm.ping", [200, 200, 200]),
    ("vm.info", [404, 200, 200]),
    ("vm.counters", [500, 500, 200]),
    ("vm.jobs", [200, 200, 200]),
    ("metrics", [200, 200, 200]),
];

impl Server {
    /// Begins with a request that takes until somebody lets it go on.
    fn begin(&self, name: &str, body: &str) -> UnixStream {
        let mut stream = self.connect();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        let head = format!("PUT /api/v1/{name} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        stream
    }

    /// Waits until the last job is a `kind` that is being worked on.
    fn works_on(&self, kind: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let jobs = self.ask("GET", "vm.jobs", "").json();
            let last = jobs.as_array().and_then(|jobs| jobs.last()).cloned().unwrap_or_default();
            if (&last["kind"], &last["state"]) == (&json!(kind), &json!("running")) {
                return;
            }
            assert!(Instant::now() < deadline, "{jobs}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Puts every question, over and over. Whoever waited for what holds the work up would wait for ever.
    fn answers_everything(&self, state: usize) {
        for _ in 0..20 {
            for (name, codes) in QUESTIONS {
                assert_eq!(self.ask("GET", name, "").status, codes[state], "{name}");
            }
        }
    }
}

fn status(stream: &mut UnixStream) -> String {
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[test]
fn whoever_asks_is_answered_during_a_snapshot_and_a_restore() {
    let server = Server::new();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    server.create(&json!({ "disks": [{ "path": image.path(), "id": "a" }] }));
    assert_eq!((server.put("vm.boot"), server.put("vm.pause")), (204, 204));
    let counters = server.ask("GET", "vm.counters", "").body;
    let queues =
        |text: &str| text.lines().filter(|line| line.contains("queue=\"0\"")).map(String::from).collect();
    let queued: Vec<String> = queues(&server.ask("GET", "metrics", "").body);
    assert!(counters.contains("read_bytes") && !queued.is_empty(), "{counters} {queued:?}");

    // The disk is busy: so the snapshot waits, and what is told of it is what was known last.
    let disk = server.bench.board.device("a").unwrap();
    let busy = disk.lock();
    let place = tempfile::tempdir().unwrap();
    let place = place.path().join("snapshot");
    std::fs::create_dir(&place).unwrap();
    let url = |name: &str| json!({ name: format!("file://{}", place.display()) }).to_string();
    let mut snapshot = server.begin("vm.snapshot", &url("destination_url"));
    server.works_on("snapshot");
    server.answers_everything(2);
    assert_eq!(server.ask("GET", "vm.counters", "").body, counters);
    assert_eq!(queues(&server.ask("GET", "metrics", "").body), queued);
    server.works_on("snapshot");
    drop(busy);
    drop(disk);
    assert_eq!(status(&mut snapshot), "204");

    assert_eq!(server.put("vm.delete"), 204);
    server.bench.gate.shut();
    let mut restore = server.begin("vm.restore", &url("source_url"));
    server.works_on("restore");
    server.answers_everything(0);
    server.works_on("restore");
    server.bench.gate.open();
    assert_eq!(status(&mut restore), "204");
    assert_eq!(server.ask("GET", "vm.info", "").json()["state"], "Paused");
}

#[test]
fn ten_that_wait_keep_nobody_from_asking() {
    let server = Server::new();
    server.create(&json!({}));
    server.bench.gate.shut();
    let mut boot = server.begin("vm.boot", "");
    server.works_on("boot");
    let mut others: Vec<UnixStream> = (0..9).map(|_| server.begin("vm.pause", "")).collect();
    // The eleventh is refused; its connection stays. So are those whose clients do not wait for the answer.
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        let mut more = server.begin("vm.resume", "");
        more.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut said = [0; 1000];
        if let Ok(length) = more.read(&mut said) {
            more.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n").unwrap();
            assert_eq!(status(&mut more), "200");
            break String::from_utf8_lossy(&said[..length]).into_owned();
        }
        assert!(Instant::now() < deadline);
    };
    assert!(refused.starts_with("HTTP/1.1 503 \r\nServer: Cloud Hypervisor API\r\n"), "{refused}");
    assert!(refused.contains("\r\nX-Cumulet-Error: too-many-requests\r\n"), "{refused}");
    let words = r#"["Error from API","The VM could not resume","Too many requests wait to be done"]"#;
    assert!(refused.ends_with(words), "{refused}");
    server.answers_everything(1);
    // There is always room for the end.
    let mut quit = server.begin("vmm.shutdown", "");
    server.answers_everything(1);
    server.bench.gate.open();
    assert_eq!(status(&mut boot), "204");
    assert_eq!(status(&mut others[0]), "204");
    for other in &mut others[1..] {
        assert_eq!(status(other), "500");
    }
    assert_eq!(status(&mut quit), "200");
}

#[test]
fn the_end_is_answered() {
    let mut server = Server::new();
    server.create(&json!({}));
    server.put("vm.boot");
    let reply = server.ask("PUT", "vmm.shutdown", "whatever");
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert!(reply.head.contains("Content-Length: 0"), "{}", reply.head);
    server.bench.end().unwrap();
    let reply = server.ask("PUT", "vm.create", "{}");
    assert_eq!((reply.status, reply.code()), (500, "vmm-ending"));
}
