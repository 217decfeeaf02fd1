//! Every command against a server that says what it was asked.

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
};

use api_client::wire::JobKind;
use serde_json::{Value, json};

use super::*;

/// What the program sends for some arguments: first line, body.
fn sent(arguments: &[&str]) -> (String, Value) {
    let words = ["cumulet-remote"].into_iter().chain(arguments.iter().copied());
    let matches = table::command("cumulet-remote").try_get_matches_from(words).unwrap();
    let (name, arguments) = matches.subcommand().unwrap();
    let request = request::make(name, arguments).unwrap();
    let body = request.body.as_deref().map_or(Value::Null, |body| serde_json::from_slice(body).unwrap());
    (format!("{:?} {}", request.method, request.endpoint), body)
}

#[test]
fn every_command_makes_its_request() {
    let cases: &[(&[&str], &str, Value)] = &[
        (&["boot"], "Put vm.boot", Value::Null),
        (&["cancel-job", "7"], "Put vm.cancel-job", json!({ "id": 7 })),
        (&["coredump", "file:///c"], "Put vm.coredump", json!({ "destination_url": "file:///c" })),
        (&["counters"], "Get vm.counters", Value::Null),
        (&["delete"], "Put vm.delete", Value::Null),
        (&["info"], "Get vm.info", Value::Null),
        (&["jobs"], "Get vm.jobs", Value::Null),
        (&["metrics"], "Get metrics", Value::Null),
        (&["nmi"], "Put vm.nmi", Value::Null),
        (&["pause"], "Put vm.pause", Value::Null),
        (&["ping"], "Get vmm.ping", Value::Null),
        (&["power-button"], "Put vm.power-button", Value::Null),
        (&["reboot"], "Put vm.reboot", Value::Null),
        (&["remove-device", "a"], "Put vm.remove-device", json!({ "id": "a" })),
        (
            &["resize", "--cpus", "2", "--memory", "1G"],
            "Put vm.resize",
            json!({ "desired_vcpus": 2, "desired_ram": 1 << 30, "desired_balloon": null }),
        ),
        (
            &["resize-disk", "--disk", "d", "--size", "1M"],
            "Put vm.resize-disk",
            json!({ "id": "d", "desired_size": 1 << 20 }),
        ),
        (
            &["resize-zone", "--id", "z", "--size", "1K"],
            "Put vm.resize-zone",
            json!({ "id": "z", "desired_ram": 1 << 10 }),
        ),
        (&["resume"], "Put vm.resume", Value::Null),
        (&["shutdown"], "Put vm.shutdown", Value::Null),
        (&["shutdown-vmm"], "Put vmm.shutdown", Value::Null),
        (&["snapshot", "file:///s"], "Put vm.snapshot", json!({ "destination_url": "file:///s" })),
        (
            &["snapshot", "file:///t", "--parent", "file:///s", "--track-changes", "on"],
            "Put vm.snapshot",
            json!({ "destination_url": "file:///t", "parent": "file:///s", "track_changes": true }),
        ),
    ];
    for (arguments, line, body) in cases {
        assert_eq!(sent(arguments), ((*line).to_owned(), body.clone()), "{arguments:?}");
    }
    let part = |arguments: &[&str], line: &str, key: &str, value: Value| {
        let (seen, body) = sent(arguments);
        assert_eq!((seen.as_str(), &body[key]), (line, &value), "{arguments:?}");
    };
    part(&["add-device", "path=/sys/d"], "Put vm.add-device", "path", json!("/sys/d"));
    part(&["add-disk", "path=/d,readonly=on"], "Put vm.add-disk", "readonly", json!(true));
    part(&["add-fs", "tag=t,socket=/s"], "Put vm.add-fs", "num_queues", json!(1));
    part(
        &["add-generic-vhost-user", "device_type=26,socket=/s,queue_sizes=[64]"],
        "Put vm.add-generic-vhost-user",
        "queue_sizes",
        json!([64]),
    );
    part(&["add-net", "tap=t"], "Put vm.add-net", "queue_size", json!(256));
    part(&["add-pmem", "file=/p,size=1M"], "Put vm.add-pmem", "size", json!(1 << 20));
    part(&["add-user-device", "socket=/s"], "Put vm.add-user-device", "socket", json!("/s"));
    part(&["add-vdpa", "path=/v"], "Put vm.add-vdpa", "num_queues", json!(1));
    part(&["add-vsock", "cid=3,socket=/s"], "Put vm.add-vsock", "cid", json!(3));
    part(&["restore", "source_url=file:///r,resume=on"], "Put vm.restore", "resume", json!(true));
    part(
        &["send-migration", "destination_url=tcp:a:1,downtime_ms=20,timeout_strategy=ignore"],
        "Put vm.send-migration",
        "timeout_strategy",
        json!("Ignore"),
    );
    part(
        &["receive-migration", "receiver_url=unix:/s,zone_updates=[z@1]"],
        "Put vm.receive-migration",
        "zone_updates",
        json!([{ "id": "z", "host_numa_node": 1 }]),
    );
}

#[test]
fn what_is_told_here_and_each_option_of_it_is_documented() {
    let documentation = include_str!("../../../docs/cli.md");
    let (_, of_the_client) = documentation.split_once("## `cumulet-remote`").unwrap();
    for row in table::ROWS {
        for option in row.options {
            assert!(of_the_client.contains(&format!("`--{}", option.name)), "{} --{}", row.name, option.name);
        }
        for beneath in row.commands {
            let command = format!("`{} {} ", row.name, beneath.name);
            let (_, from_there) = of_the_client.split_once(&command).expect(&command);
            let there = from_there.split("\n| `").next().unwrap();
            for option in beneath.options {
                assert!(there.contains(&format!("`--{}", option.name)), "{command}: --{}", option.name);
            }
        }
    }
}

#[test]
fn a_configuration_is_sent_unchanged() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{ \"strange\" :1 }\n").unwrap();
    let words = ["r", "create", file.path().to_str().unwrap()];
    let matches = table::command("r").try_get_matches_from(words).unwrap();
    let (name, arguments) = matches.subcommand().unwrap();
    assert_eq!(request::make(name, arguments).unwrap().body.unwrap(), b"{ \"strange\" :1 }\n");
}

#[test]
fn what_does_not_read_is_an_error_that_names_it() {
    let refused = |words: &[&str]| {
        let words = ["r"].into_iter().chain(words.iter().copied());
        let matches = table::command("r").try_get_matches_from(words).unwrap();
        let (name, arguments) = matches.subcommand().unwrap();
        vmm::error::chain(&request::make(name, arguments).unwrap_err())
    };
    assert!(refused(&["add-disk", "colour=red"]).starts_with("add-disk: "));
    assert!(refused(&["resize", "--memory", "much"]).starts_with("--memory: "));
    assert!(refused(&["create", "/nowhere"]).starts_with("cannot read /nowhere"));
    assert!(refused(&["send-migration", "destination_url=tcp:a:1,downtime_ms=0"]).contains("downtime_ms"));
    assert!(refused(&["send-migration", "destination_url=tcp:a:1,tls_dir=/nowhere"]).contains("ca-cert.pem"));
    // What the server would say is said before there is one to ask.
    for (words, expected) in [
        (
            ["send-migration", "destination_url=unix:/s,connections=4"],
            "connections: more than one only by tcp",
        ),
        (["send-migration", "destination_url=tcp:a:1,connections=129"], "connections: 128 at most"),
        (["send-migration", "destination_url=tcp:a:1,local=on"], "local: only by unix"),
        (
            ["send-migration", "destination_url=unix:/s,preserve_source=on"],
            "preserve_source: only with local",
        ),
        (
            ["send-migration", "destination_url=ftp://a"],
            "destination_url \"ftp://a\": tcp:HOST:PORT or unix:PATH",
        ),
        (["receive-migration", "receiver_url=a:1"], "receiver_url \"a:1\": tcp:HOST:PORT or unix:PATH"),
        (
            ["receive-migration", "receiver_url=unix:/s,zone_updates=[z@1,z@2]"],
            "zone_updates: z is there twice",
        ),
    ] {
        let said = refused(&words);
        assert!(said.starts_with(words[0]) && said.contains(expected), "{words:?}: {said}");
    }
    assert!(refused(&["add-net", "fd=99"]).contains("99"));
    assert!(table::command("r").try_get_matches_from(["r", "add-disk"]).is_err());
}

#[test]
fn every_command_is_listed_with_an_example_that_reads() {
    for row in table::ROWS {
        let words = row.example.split(' ').filter(|word| !word.is_empty());
        let line: Vec<&str> = ["r", row.name].into_iter().chain(words).collect();
        let matches = table::command("r").try_get_matches_from(line).unwrap();
        let (name, arguments) = matches.subcommand().unwrap();
        match request::make(name, arguments) {
            Ok(_) | Err(RequestError::File { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
    table::command("r").debug_assert();
}

/// Answers one client with `answer`, and tells what it sent.
fn server(answer: &'static str) -> (tempfile::TempDir, std::thread::JoinHandle<String>) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("api")).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    });
    (directory, thread)
}

fn ask(answer: &'static str, words: &[&str]) -> (Result<Answered, RemoteError>, String) {
    let (directory, thread) = server(answer);
    let socket = directory.path().join("api");
    let line = ["r", "--api-socket", socket.to_str().unwrap()].into_iter().chain(words.iter().copied());
    let matches = table::command("r").try_get_matches_from(line).unwrap();
    let (name, arguments) = matches.subcommand().unwrap();
    (send(&matches, Called::Cumulet, (name, arguments)), thread.join().unwrap())
}

#[test]
fn answers_are_printed_as_they_came() {
    let (answer, sent) = ask("HTTP/1.1 200 \r\nContent-Length: 8\r\n\r\n{\"a\": 1}", &["info"]);
    assert!(
        sent.starts_with("GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"),
        "{sent}"
    );
    let answer = answer.unwrap().answer;
    assert_eq!(Form::Numbered.answer(answer.body()), b"{\"a\": 1}\n");
    assert_eq!(Form::Json.answer(answer.body()), b"{\"result\":{\"a\":1}}\n");
    let (answer, sent) = ask("HTTP/1.1 204 \r\n\r\n", &["remove-device", "a"]);
    assert!(sent.contains("Content-Length: 10\r\n\r\n{\"id\":\"a\"}"), "{sent}");
    assert_eq!(Form::Plain.answer(answer.unwrap().answer.body()), b"");
    let (answer, _) = ask("HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", &["shutdown-vmm"]);
    let answer = answer.unwrap().answer;
    assert_eq!(Form::Plain.answer(answer.body()), b"\n");
    assert_eq!(Form::Json.answer(answer.body()), b"{\"result\":null}\n");
}

#[test]
fn a_report_that_is_asked_for_is_told_instead_of_the_answer() {
    let restore = "source_url=file:///s";
    let carrying = "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}";
    for (words, asked) in [
        (&["restore", restore] as &[&str], None),
        (&["restore", restore, "--report"], Some(Shape::Table)),
        (&["restore", "--report", restore], Some(Shape::Table)),
        (&["restore", restore, "--report=svg:a.svg"], Some(Shape::Svg("a.svg".into()))),
    ] {
        let matches = table::command("r").try_get_matches_from([&["r"], words].concat()).unwrap();
        let (_, arguments) = matches.subcommand().unwrap();
        assert_eq!(arguments.get_one::<Shape>(table::REPORT).cloned(), asked, "{words:?}");
        let (answer, sent) = ask(carrying, &["restore", restore]);
        assert!(sent.contains("\r\nX-Cumulet-Report: full\r\n"), "{sent}");
        match tell(&answer.unwrap(), arguments, Form::Plain) {
            // Those who do not ask know an answer without a body.
            Ok(text) => assert!(asked.is_none() && text.is_empty()),
            // It is none, and is found to be none.
            Err(error) => assert!(error.to_string().contains("its report cannot be read"), "{error}"),
        }
    }
    let wrong = ["r", "restore", restore, "--report=picture"];
    let said = table::command("r").try_get_matches_from(wrong).unwrap_err().to_string();
    assert!(said.contains("is not table, json or svg:FILE"), "{said}");
    let matches = table::command("r").try_get_matches_from(["r", "restore", restore, "--report"]).unwrap();
    let (answer, _) = ask("HTTP/1.1 204 \r\n\r\n", &["restore", restore]);
    let told = tell(&answer.unwrap(), matches.subcommand().unwrap().1, Form::Json);
    assert!(matches!(told, Err(RemoteError::Report(ReportError::None))));
}

#[test]
fn what_a_restore_would_do_is_the_answer_to_a_rehearsal() {
    let rehearsal = "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}";
    for (words, printed) in [
        (&["restore", "source_url=file:///s,dry_run=on"] as &[&str], b"{}\n" as &[u8]),
        (&["restore", "source_url=file:///s"], b""),
        (&["snapshot", "file:///s"], b""),
    ] {
        let matches = table::command("r").try_get_matches_from([&["r"], words].concat()).unwrap();
        let (_, arguments) = matches.subcommand().unwrap();
        let answered = ask(rehearsal, words).0.unwrap();
        assert_eq!(tell(&answered, arguments, Form::Plain).unwrap(), printed, "{words:?}");
    }
    let words = ["r", "restore", "--report", "source_url=file:///s,dry_run=on"];
    let matches = table::command("r").try_get_matches_from(words).unwrap();
    let refused = request::make("restore", matches.subcommand().unwrap().1).unwrap_err().to_string();
    assert!(refused.starts_with("--report: a restore that is only tried has none"), "{refused}");
}

#[test]
fn what_takes_long_is_known() {
    let work = |words: &[&str]| {
        let words = ["r"].into_iter().chain(words.iter().copied());
        let matches = table::command("r").try_get_matches_from(words).unwrap();
        let (name, arguments) = matches.subcommand().unwrap();
        request::make(name, arguments).unwrap().work
    };
    let long: [&[&str]; 5] = [
        &["boot"],
        &["reboot"],
        &["snapshot", "file:///s"],
        &["restore", "source_url=file:///s"],
        &["receive-migration", "receiver_url=tcp:a:1"],
    ];
    for words in long {
        assert_eq!(work(words), Work::Long, "{words:?}");
    }
    let send = ["send-migration", "destination_url=tcp:a:1"];
    assert_eq!(work(&send), Work::Begun(JobKind::SendMigration));
    assert_eq!(work(&["info"]), Work::Short);
}

#[test]
fn a_job_that_was_begun_and_failed_is_an_error() {
    let job = |state: &str| -> JobInfo {
        serde_json::from_value(json!({
            "id": 7, "kind": "send-migration", "state": state, "phase": "memory", "bytes_done": 0,
            "bytes_per_second": 0, "elapsed_ms": 0, "error": ["cannot send", "no route"],
        }))
        .unwrap()
    };
    succeeded(job("done")).unwrap();
    for state in ["failed", "cancelled"] {
        let error = succeeded(job(state)).unwrap_err();
        let line = "cumulet-remote: send-migration (job 7) did not succeed: cannot send: no route\n";
        assert_eq!(Form::Plain.error(&error), (line.to_owned(), false));
    }
}

#[test]
fn errors_are_told_in_every_form() {
    let refused =
        "HTTP/1.1 404 \r\nX-Cumulet-Error: no-vm\r\nContent-Length: 25\r\n\r\n[\"Error from API\",\"none\"]";
    let error = ask(refused, &["info"]).0.unwrap_err();
    let words = "Server responded with NotFound";
    assert_eq!(
        Form::Plain.error(&error),
        (format!("cumulet-remote: {words}: Error from API: none\n"), false)
    );
    let expected = format!(
        "Error: ch-remote exited with the following chain of errors:\n  0: {words}\n  1: Error from API\n  2: none\n"
    );
    assert_eq!(Form::Numbered.error(&error), (expected, false));
    let json = "{\"code\":\"no-vm\",\"error\":[\"Error from API\",\"none\"],\"status\":404}\n";
    assert_eq!(Form::Json.error(&error), (json.into(), true));
    let error = ask("HTTP/1.1 409 \r\n\r\n", &["info"]).0.unwrap_err();
    assert!(Form::Numbered.error(&error).0.contains("cannot be read"), "{error}");
    let matches = table::command("r").try_get_matches_from(["r", "info"]).unwrap();
    let (name, arguments) = matches.subcommand().unwrap();
    assert!(matches!(send(&matches, Called::Cumulet, (name, arguments)), Err(RemoteError::NoSocket)));
}
