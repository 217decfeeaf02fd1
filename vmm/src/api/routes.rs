//! Which endpoint a request is for, and whether it has the form that this one takes.

use super::{
    Vmm, answer,
    body::{self, Unknown},
    commands,
    http::{Method, Request, Response, Status},
    metrics,
    server::{LONG, Responder},
};
use crate::{
    control::{Command, CommandError},
    host::give_back_memory,
};

/// What the paths of all endpoints begin with.
const BASE: &str = "/api/v1/";

/// Endpoints of whose answers some clients read a first piece and no more.
const READ_AT_ONCE: [&str; 2] = ["vm.add-net", "vm.restore"];

/// Does at once what a body describes.
type Act = fn(&Vmm, &[u8]) -> Result<(Response, Unknown), Response>;

/// An endpoint.
pub(super) struct Endpoint {
    /// The last part of its path.
    pub(super) name: &'static str,
    /// What is said of a failure, before its causes.
    sentence: &'static str,
    action: Action,
}

/// What an endpoint does, which also is its method and whether it takes a body.
enum Action {
    /// GET: tells something, at once.
    Tell(fn(&Vmm) -> Result<Response, CommandError>),
    /// PUT: does something that needs no further words.
    Do(fn() -> Command),
    /// PUT: does something that the body describes.
    DoWith(commands::Read),
    /// PUT: does something at once that the body describes.
    DoAtOnce(Act),
    /// PUT: ends everything. Whatever is in the body.
    Quit,
}

const INFO: &str = "The VM info is not available";

/// All endpoints, by name.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    Endpoint { name: "metrics", sentence: INFO, action: Action::Tell(metrics::tell) },
    Endpoint { name: "openapi.json", sentence: INFO, action: Action::Tell(openapi) },
    doing_with("vm.add-device", "The device could not be added to the VM", commands::add_device),
    doing_with("vm.add-disk", "The disk could not be added to the VM", commands::add_disk),
    doing_with("vm.add-fs", "The fs could not be added to the VM", commands::add_fs),
    doing_with(
        "vm.add-generic-vhost-user",
        "The generic vhost-user device could not be added to the VM",
        commands::add_generic_vhost_user,
    ),
    doing_with("vm.add-net", "The network device could not be added to the VM", commands::add_net),
    doing_with("vm.add-pmem", "The pmem device could not be added to the VM", commands::add_pmem),
    doing_with(
        "vm.add-user-device",
        "The user device could not be added to the VM",
        commands::add_user_device,
    ),
    doing_with("vm.add-vdpa", "The vDPA device could not be added to the VM", commands::add_vdpa),
    doing_with("vm.add-vsock", "The vsock device could not be added to the VM", commands::add_vsock),
    doing("vm.boot", "The VM could not boot", || Command::Boot),
    Endpoint {
        name: "vm.cancel-job",
        sentence: "The job could not be cancelled",
        action: Action::DoAtOnce(cancel_job),
    },
    doing_with("vm.coredump", "The VM could not be coredumped", commands::coredump),
    Endpoint { name: "vm.counters", sentence: INFO, action: Action::Tell(counters) },
    doing_with("vm.create", "The VM could not be created", commands::create),
    doing("vm.delete", "The VM could not be deleted", || Command::Delete),
    Endpoint { name: "vm.info", sentence: INFO, action: Action::Tell(info) },
    Endpoint { name: "vm.jobs", sentence: INFO, action: Action::Tell(jobs) },
    doing("vm.nmi", "Error triggering NMI", || Command::Nmi),
    doing("vm.pause", "The VM could not be paused", || Command::Pause),
    doing("vm.power-button", "Error triggering power button", || Command::PowerButton),
    doing("vm.reboot", "The VM could not reboot", || Command::Reboot),
    doing_with("vm.receive-migration", "Error receiving migration", commands::receive_migration),
    doing_with("vm.remove-device", "The device could not be removed from the VM", commands::remove_device),
    doing_with("vm.resize", "The VM could not be resized", commands::resize),
    doing_with("vm.resize-disk", "The disk could not be resized", commands::resize_disk),
    doing_with("vm.resize-zone", "The memory zone could not be resized", commands::resize_zone),
    doing_with("vm.restore", "The VM could not be restored", commands::restore),
    doing("vm.resume", "The VM could not resume", || Command::Resume),
    doing_with("vm.send-migration", "Error dispatching the migration worker", commands::send_migration),
    doing("vm.shutdown", "The VM could not shutdown", || Command::Shutdown),
    doing_with("vm.snapshot", "The VM could not be snapshotted", commands::snapshot),
    Endpoint { name: "vmm.ping", sentence: INFO, action: Action::Tell(ping) },
    Endpoint { name: "vmm.shutdown", sentence: "The VMM could not shutdown", action: Action::Quit },
];

const fn doing(name: &'static str, sentence: &'static str, command: fn() -> Command) -> Endpoint {
    Endpoint { name, sentence, action: Action::Do(command) }
}

const fn doing_with(name: &'static str, sentence: &'static str, read: commands::Read) -> Endpoint {
    Endpoint { name, sentence, action: Action::DoWith(read) }
}

impl Endpoint {
    /// Its method.
    pub(super) fn method(&self) -> Method {
        match self.action {
            Action::Tell(_) => Method::Get,
            Action::Do(_) | Action::DoWith(_) | Action::DoAtOnce(_) | Action::Quit => Method::Put,
        }
    }

    /// Whether it needs a body.
    #[cfg(test)]
    pub(super) fn takes_body(&self) -> bool {
        matches!(self.action, Action::DoWith(_) | Action::DoAtOnce(_))
    }

    /// The answer to a method that it does not have. Most say nothing to those that no endpoint has.
    fn wrong_method(&self, method: Method) -> Response {
        let speaks = ["vm.create", "vm.info", "vmm.ping", "vmm.shutdown"].contains(&self.name);
        match method {
            Method::Patch | Method::Delete if !speaks => answer::bad_request_without_words("wrong-method"),
            _ => answer::bad_request("wrong-method"),
        }
    }

    fn without_body(&self) -> Response {
        match self.name {
            "vm.create" => answer::bad_request_without_words("body-missing"),
            _ => answer::bad_request("body-missing"),
        }
    }
}

/// Answers a request, at once or when its command has been carried out.
pub(super) fn serve(vmm: &Vmm, request: Request, responder: Responder) {
    // The whole path, to the letter.
    let name = request.path.strip_prefix(BASE);
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| Some(endpoint.name) == name) else {
        return responder.send(answer::not_found());
    };
    let Request { method, body, descriptors, wants_report, .. } = request;
    let is_long = body.len() >= LONG;
    let asked = Asked { endpoint, wants_report, responder };
    if method != endpoint.method() {
        return asked.answer(endpoint.wrong_method(method));
    }
    let Endpoint { name, sentence, action } = endpoint;
    match action {
        Action::Tell(_) | Action::Do(_) if !body.is_empty() => {
            asked.answer(answer::bad_request("body-unexpected"));
        }
        Action::Tell(tell) => {
            asked.answer(tell(vmm).unwrap_or_else(|error| answer::failure(&error, sentence)));
        }
        Action::Do(command) => asked.carry_out(vmm, command(), Unknown::default()),
        Action::DoWith(_) | Action::DoAtOnce(_) if body.is_empty() => {
            asked.answer(endpoint.without_body());
        }
        Action::DoWith(read) => {
            let read = read(&body, descriptors, vmm.strict);
            drop(body);
            match read {
                Ok((command, unknown)) => asked.carry_out(vmm, command, unknown),
                Err(refusal) => asked.answer(refusal),
            }
            if is_long {
                // What it came to in between was many small pieces.
                give_back_memory();
            }
        }
        Action::DoAtOnce(act) => match act(vmm, &body) {
            Ok((response, unknown)) => asked.answer(unknown.tell(name, response)),
            Err(refusal) => asked.answer(refusal),
        },
        Action::Quit => asked.carry_out(vmm, Command::Quit, Unknown::default()),
    }
}

/// Who is to be answered, and how.
struct Asked {
    endpoint: &'static Endpoint,
    wants_report: bool,
    responder: Responder,
}

impl Asked {
    /// Answers a client as it reads answers.
    fn answer(self, response: Response) {
        let whole = self.wants_report || !READ_AT_ONCE.contains(&self.endpoint.name);
        self.responder.send(if whole { response } else { answer::fitted(response) });
    }

    /// Answers when a command has been carried out.
    fn carry_out(self, vmm: &Vmm, command: Command, unknown: Unknown) {
        let Some(place) = vmm.queue.take(matches!(command, Command::Quit)) else {
            let refusal = answer::no_room(self.endpoint.sentence);
            return self.answer(refusal);
        };
        let reply = move |result: Result<_, CommandError>| {
            drop(place);
            let Endpoint { name, sentence, action } = self.endpoint;
            let response = match action {
                Action::Quit if result.is_ok() => Response::new(Status::Ok),
                _ => answer::outcome(result, sentence, self.wants_report),
            };
            self.answer(unknown.tell(name, response));
        };
        vmm.handle.send(command, Box::new(reply));
    }
}

fn ping(vmm: &Vmm) -> Result<Response, CommandError> {
    use api_client::wire::{REFERENCE_VERSION, VmmPingResponse};
    Ok(answer::json(&VmmPingResponse {
        build_version: format!("v{REFERENCE_VERSION}"),
        version: format!("{REFERENCE_VERSION}.0"),
        pid: i64::from(std::process::id()),
        features: vmm.features.clone(),
    }))
}

fn info(vmm: &Vmm) -> Result<Response, CommandError> {
    Ok(answer::told(&vmm.board.status()?.json))
}

fn counters(vmm: &Vmm) -> Result<Response, CommandError> {
    Ok(answer::json(&vmm.board.counters()?))
}

fn jobs(vmm: &Vmm) -> Result<Response, CommandError> {
    Ok(answer::json(&vmm.jobs.list()))
}

fn openapi(_: &Vmm) -> Result<Response, CommandError> {
    Ok(Response::json(Status::Ok, api_client::OPENAPI))
}

fn cancel_job(vmm: &Vmm, bytes: &[u8]) -> Result<(Response, Unknown), Response> {
    let (said, unknown) = body::read::<api_client::wire::VmCancelJob>(bytes, vmm.strict)?;
    let cancelled = vmm.jobs.cancel(said.id).map_err(CommandError::Job);
    let response = match cancelled {
        Ok(()) => Response::new(Status::NoContent),
        Err(error) => answer::failure(&error, "The job could not be cancelled"),
    };
    Ok((response, unknown))
}
