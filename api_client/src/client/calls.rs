//! Every endpoint as a method.

use std::os::fd::{AsFd, BorrowedFd};

use serde::{Serialize, de::DeserializeOwned};

use super::{Answer, Client, ClientError, Method};
use crate::wire;

/// Endpoints that do something and have nothing to say, by their method's name.
macro_rules! doing {
    ($($(#[$doc:meta])* $name:ident: $endpoint:literal;)*) => {
        impl Client {
            $($(#[$doc])*
            ///
            /// # Errors
            /// The connection fails, or the server refuses.
            pub fn $name(&mut self) -> Result<(), ClientError> {
                self.request(Method::Put, $endpoint, None, &[]).map(|_| ())
            })*
        }
    };
}

/// The same with an object that says what.
macro_rules! doing_with {
    ($($(#[$doc:meta])* $name:ident($body:ty): $endpoint:literal;)*) => {
        impl Client {
            $($(#[$doc])*
            ///
            /// # Errors
            /// The connection fails, or the server refuses.
            pub fn $name(&mut self, body: &$body) -> Result<(), ClientError> {
                self.put($endpoint, body, &[]).map(|_| ())
            })*
        }
    };
}

/// Endpoints that add a device, and tell where it is if the VM runs.
macro_rules! adding {
    ($($(#[$doc:meta])* $name:ident($body:ty): $endpoint:literal;)*) => {
        impl Client {
            $($(#[$doc])*
            /// Tells where it is if the VM is booted.
            ///
            /// # Errors
            /// The connection fails, or the server refuses.
            pub fn $name(&mut self, device: &$body) -> Result<Option<wire::PciDeviceInfo>, ClientError> {
                told(&self.put($endpoint, device, &[])?)
            })*
        }
    };
}

doing! {
    /// Builds the machine and lets it run.
    boot: "vm.boot";
    /// Forgets the VM, after a shutdown if that is needed.
    delete: "vm.delete";
    /// Takes the machine down; the configuration stays.
    shutdown: "vm.shutdown";
    /// Takes the machine down and boots it again.
    reboot: "vm.reboot";
    /// Brings the VM to a standstill.
    pause: "vm.pause";
    /// Lets it run again.
    resume: "vm.resume";
    /// Presses the power button.
    power_button: "vm.power-button";
    /// Delivers a non-maskable interrupt to every processor.
    nmi: "vm.nmi";
    /// Deletes the VM and ends the server's process.
    shutdown_vmm: "vmm.shutdown";
}

doing_with! {
    /// Stores a configuration.
    create(wire::VmConfig): "vm.create";
    /// Changes processors, memory, balloon.
    resize(wire::VmResize): "vm.resize";
    /// Changes the size of a disk.
    resize_disk(wire::VmResizeDisk): "vm.resize-disk";
    /// Changes the size of a memory zone.
    resize_zone(wire::VmResizeZone): "vm.resize-zone";
    /// Removes a device.
    remove_device(wire::VmRemoveDevice): "vm.remove-device";
    /// Dumps the guest's memory.
    coredump(wire::VmCoredumpData): "vm.coredump";
    /// Begins to move the VM to another host.
    send_migration(wire::SendMigrationData): "vm.send-migration";
    /// Asks for a job to be given up.
    cancel_job(wire::VmCancelJob): "vm.cancel-job";
}

adding! {
    /// Adds a disk.
    add_disk(wire::DiskConfig): "vm.add-disk";
    /// Adds a shared file system.
    add_fs(wire::FsConfig): "vm.add-fs";
    /// Adds a device on a vhost-user back end.
    add_generic_vhost_user(wire::GenericVhostUserConfig): "vm.add-generic-vhost-user";
    /// Adds persistent memory.
    add_pmem(wire::PmemConfig): "vm.add-pmem";
    /// Adds a device in another process.
    add_user_device(wire::UserDeviceConfig): "vm.add-user-device";
    /// Adds a vDPA device.
    add_vdpa(wire::VdpaConfig): "vm.add-vdpa";
    /// Adds the socket device.
    add_vsock(wire::VsockConfig): "vm.add-vsock";
}

impl Client {
    /// Whether the server is there, and which it is.
    ///
    /// # Errors
    /// The connection fails, or the server refuses.
    pub fn ping(&mut self) -> Result<wire::VmmPingResponse, ClientError> {
        self.get("vmm.ping")
    }

    /// What is known of the VM.
    ///
    /// # Errors
    /// The connection fails, or there is no VM.
    pub fn info(&mut self) -> Result<wire::VmInfo, ClientError> {
        self.get("vm.info")
    }

    /// What the devices of the booted VM have counted.
    ///
    /// # Errors
    /// The connection fails, or the VM is not booted.
    pub fn counters(&mut self) -> Result<wire::VmCounters, ClientError> {
        self.get("vm.counters")
    }

    /// Long work, the oldest first.
    ///
    /// # Errors
    /// The connection fails, or the server has no such endpoint.
    pub fn jobs(&mut self) -> Result<Vec<wire::JobInfo>, ClientError> {
        self.get("vm.jobs")
    }

    /// Metrics, as Prometheus reads them.
    ///
    /// # Errors
    /// The connection fails, or the server has no such endpoint.
    pub fn metrics(&mut self) -> Result<String, ClientError> {
        let answer = self.request(Method::Get, "metrics", None, &[])?;
        let text = answer.body().unwrap_or_default().to_vec();
        String::from_utf8(text).map_err(|_| ClientError::Protocol("it is no text"))
    }

    /// Adds a network device, with the opened taps that its `descriptors` holds. Tells where it is if the VM
    /// is booted.
    ///
    /// # Errors
    /// The connection fails, or the server refuses.
    pub fn add_net(&mut self, net: &wire::NetConfig) -> Result<Option<wire::PciDeviceInfo>, ClientError> {
        let descriptors: Vec<BorrowedFd<'_>> = net.descriptors.0.iter().map(|fd| fd.as_fd()).collect();
        // Their numbers mean nothing to anybody else.
        let said = wire::NetConfig { fds: None, ..net.clone() };
        told(&self.put("vm.add-net", &said, &descriptors)?)
    }

    /// Adds a device of the host, with its opened character device if it is given so. Tells where it is if
    /// the VM is booted.
    ///
    /// # Errors
    /// The connection fails, or the server refuses.
    pub fn add_device(
        &mut self,
        device: &wire::DeviceConfig,
        opened: Option<BorrowedFd<'_>>,
    ) -> Result<Option<wire::PciDeviceInfo>, ClientError> {
        let said = wire::DeviceConfig { fd: None, ..device.clone() };
        told(&self.put("vm.add-device", &said, opened.as_slice())?)
    }

    /// Takes a snapshot of the paused VM. Returns how that went, if the server tells.
    ///
    /// # Errors
    /// The connection fails, or the server refuses.
    pub fn snapshot(
        &mut self,
        said: &wire::VmSnapshotConfig,
    ) -> Result<Option<Box<wire::SaveReport>>, ClientError> {
        told(&self.put("vm.snapshot", said, &[])?)
    }

    /// Restores a VM, or tries whether it could be. The descriptors are those of `net_fds`, in its order, then
    /// one for each of `vfio_fds` and the iommufd.
    ///
    /// # Errors
    /// The connection fails, or the server refuses.
    pub fn restore(
        &mut self,
        said: &wire::RestoreConfig,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Restored, ClientError> {
        let answer = self.put("vm.restore", said, descriptors)?;
        match said.dry_run {
            true => answer.json().map(Restored::Tried),
            false => told(&answer).map(Restored::Done),
        }
    }

    /// Waits for a VM that moves here. The descriptors are one for each of `vfio_fds` and the iommufd.
    ///
    /// # Errors
    /// The connection fails, or the server refuses.
    pub fn receive_migration(
        &mut self,
        said: &wire::ReceiveMigrationData,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        self.put("vm.receive-migration", said, descriptors).map(|_| ())
    }

    fn get<T: DeserializeOwned>(&mut self, endpoint: &str) -> Result<T, ClientError> {
        self.request(Method::Get, endpoint, None, &[])?.json()
    }

    fn put(
        &mut self,
        endpoint: &str,
        body: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Request)?;
        self.request(Method::Put, endpoint, Some(&body), descriptors)
    }
}

/// What a restore is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The VM is there; and how that went, if the server tells.
    Done(Option<Box<wire::RestoreReport>>),
    /// It was only tried, as `dry_run` says: what it would do.
    Tried(Box<wire::RestoreRehearsal>),
}

/// A report, if there is one.
fn told<T: DeserializeOwned>(answer: &Answer) -> Result<Option<T>, ClientError> {
    match answer.body() {
        Some(body) if !body.is_empty() => answer.json().map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    /// Asks a server that answers so; returns what was sent, too.
    fn asked<T>(answer: &str, ask: impl FnOnce(&mut Client) -> T) -> (T, String) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer.as_bytes()).unwrap();
        let said = ask(&mut Client::over(ours));
        let mut sent = String::new();
        theirs.read_to_string(&mut sent).unwrap();
        (said, sent)
    }

    fn with_body(body: &str) -> String {
        format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    const SAVED: &str =
        r#"{"directory":"/s","root":7,"memory_bytes":8,"tracking":false,"phases":[],"total_ns":9,"new":1}"#;
    const TRIED: &str = r#"{"directory":"/s","memory":[],"memory_bytes":1,"verified":"off","edited":[],
        "overridden":[],"vcpus":2,"devices":["_disk0"]}"#;

    #[test]
    fn a_snapshot_comes_with_its_report_if_the_server_tells() {
        let said = wire::VmSnapshotConfig::to("file:///s");
        let (report, sent) = asked(&with_body(SAVED), |client| client.snapshot(&said));
        assert_eq!(report.unwrap().map(|report| report.root), Some(7));
        assert!(sent.contains("\r\nX-Cumulet-Report: full\r\n"), "{sent}");
        let (report, _) = asked("HTTP/1.1 204 \r\n\r\n", |client| client.snapshot(&said));
        assert_eq!(report.unwrap(), None);
        let (report, _) = asked(&with_body("[]"), |client| client.snapshot(&said));
        assert!(matches!(report, Err(ClientError::Body(_))));
    }

    #[test]
    fn a_restore_that_is_tried_says_what_it_would_do() {
        let tried = wire::RestoreConfig { dry_run: true, ..wire::RestoreConfig::default() };
        let (answer, _) = asked(&with_body(TRIED), |client| client.restore(&tried, &[]));
        let Restored::Tried(rehearsal) = answer.unwrap() else { panic!("it was only tried") };
        assert_eq!((rehearsal.vcpus, rehearsal.devices), (2, vec!["_disk0".to_owned()]));
        let done = wire::RestoreConfig::default();
        let (answer, _) = asked("HTTP/1.1 204 \r\n\r\n", |client| client.restore(&done, &[]));
        assert_eq!(answer.unwrap(), Restored::Done(None));
        // What would be done is no report of what was.
        let (answer, _) = asked(&with_body(TRIED), |client| client.restore(&done, &[]));
        assert!(matches!(answer, Err(ClientError::Body(_))));
        // One that does not know of trying has restored it.
        let (answer, _) = asked("HTTP/1.1 204 \r\n\r\n", |client| client.restore(&tried, &[]));
        assert!(matches!(answer, Err(ClientError::Body(_))));
    }
}
