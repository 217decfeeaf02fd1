//! What may differ between the configuration of a snapshot and the one that is restored: the host's
//! resources, and nothing that the guest has seen.

use serde_json::Value;
use thiserror::Error;

/// The configuration differs where it must not.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{place} was {saved} when the snapshot was made, and is {now}: a restore cannot change it")]
pub struct EditError {
    /// Which member, as in `cpus.boot_vcpus`.
    pub place: String,
    /// Its value then.
    pub saved: String,
    /// Its value now.
    pub now: String,
}

/// Members that may be edited, with all that is in them. `*` is any item of a list.
const HOST_RESOURCES: &[&str] = &[
    "payload",
    "cpus.affinity",
    "cpus.core_scheduling",
    "memory.shared",
    "memory.mergeable",
    "memory.hugepages",
    "memory.hugepage_size",
    "memory.prefault",
    "memory.reserve",
    "memory.thp",
    "memory.zones.*.shared",
    "memory.zones.*.mergeable",
    "memory.zones.*.hugepages",
    "memory.zones.*.hugepage_size",
    "memory.zones.*.prefault",
    "memory.zones.*.reserve",
    "memory.zones.*.thp",
    "memory.zones.*.file",
    "memory.zones.*.host_numa_node",
    "rate_limit_groups",
    "disks.*.path",
    "disks.*.direct",
    "disks.*.vhost_socket",
    "disks.*.rate_limiter_config",
    "disks.*.rate_limit_group",
    "disks.*.queue_affinity",
    "disks.*.image_type",
    "disks.*.lock_granularity",
    "disks.*.backing_files",
    "disks.*.disable_io_uring",
    "disks.*.disable_aio",
    "net.*.tap",
    "net.*.ip",
    "net.*.mask",
    "net.*.host_mac",
    "net.*.fds",
    "net.*.vhost_socket",
    "net.*.rate_limiter_config",
    "rng.src",
    "fs.*.socket",
    "generic_vhost_user.*.socket",
    "pmem.*.file",
    "serial.mode",
    "serial.file",
    "serial.socket",
    "console.mode",
    "console.file",
    "console.socket",
    "debug_console.file",
    "vsock.socket",
    "vsock.cid",
    "devices.*.path",
    "user_devices.*.socket",
    "vdpa.*.path",
    "landlock_enable",
    "landlock_rules",
];

/// Compares the two, both in the form of the REST API with all defaults written out. Returns the members
/// that differ and may.
///
/// # Errors
/// One differs that may not.
pub fn edits(saved: &Value, now: &Value) -> Result<Vec<String>, EditError> {
    let mut edited = Vec::new();
    compare(&mut Vec::new(), saved, now, &mut edited)?;
    Ok(edited)
}

fn compare<'value>(
    place: &mut Vec<String>,
    saved: &'value Value,
    now: &'value Value,
    edited: &mut Vec<String>,
) -> Result<(), EditError> {
    if saved == now {
        return Ok(());
    }
    if is_host_resource(place) && !takes_a_console_away(place, saved, now) {
        edited.push(place.join("."));
        return Ok(());
    }
    match (saved, now) {
        (Value::Object(before), Value::Object(after)) => {
            let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                place.push(name.clone());
                let absent = &Value::Null;
                compare(
                    place,
                    before.get(name).unwrap_or(absent),
                    after.get(name).unwrap_or(absent),
                    edited,
                )?;
                place.pop();
            }
            Ok(())
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                place.push(index.to_string());
                compare(place, before, after, edited)?;
                place.pop();
            }
            Ok(())
        }
        _ => Err(EditError { place: place.join("."), saved: short(saved), now: short(now) }),
    }
}

fn is_host_resource(place: &[String]) -> bool {
    HOST_RESOURCES.iter().any(|allowed| {
        let allowed: Vec<&str> = allowed.split('.').collect();
        let fits = |(wanted, name): (&&str, &String)| {
            *wanted == name || *wanted == "*" && name.bytes().all(|byte| byte.is_ascii_digit())
        };
        allowed.len() == place.len() && allowed.iter().zip(place).all(fits)
    })
}

/// Whether it is a console's mode, and one of the two is that there is no such device.
fn takes_a_console_away(place: &[String], saved: &Value, now: &Value) -> bool {
    let [.., last] = place else { return false };
    let is_off = |mode: &Value| mode.as_str() == Some("Off");
    last == "mode" && is_off(saved) != is_off(now)
}

/// A value in an error message: all of it, if that is not much.
fn short(value: &Value) -> String {
    let text = if value.is_null() { "absent".to_owned() } else { value.to_string() };
    if text.chars().count() <= 80 {
        return text;
    }
    text.chars().take(79).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_host_gives_may_change() {
        let saved = json!({ "disks": [{ "path": "a", "id": "d" }], "memory": { "size": 1, "shared": false },
            "net": [{ "id": "n", "tap": "t" }], "payload": { "kernel": "k" }, "vsock": { "socket": "s" } });
        let now = json!({ "disks": [{ "path": "b", "id": "d" }], "memory": { "size": 1, "shared": true },
            "net": [{ "id": "n" }], "vsock": { "socket": "u" } });
        let edited = edits(&saved, &now).unwrap();
        assert_eq!(edited, ["disks.0.path", "memory.shared", "net.0.tap", "payload", "vsock.socket"]);
        assert!(edits(&saved, &saved).unwrap().is_empty());
    }

    #[test]
    fn what_the_guest_has_seen_may_not() {
        let refused = |saved: Value, now: Value| edits(&saved, &now).unwrap_err().to_string();
        let said = refused(json!({ "cpus": { "boot_vcpus": 2 } }), json!({ "cpus": { "boot_vcpus": 3 } }));
        assert_eq!(
            said,
            "cpus.boot_vcpus was 2 when the snapshot was made, and is 3: a restore cannot change it"
        );
        let said = refused(json!({ "disks": [{ "id": "a" }] }), json!({ "disks": [] }));
        assert!(said.starts_with(r#"disks was [{"id":"a"}]"#), "{said}");
        let said = refused(json!({ "pvpanic": true }), json!({}));
        assert!(said.contains("is absent"), "{said}");
        // A console's other end may be another, but there is one or there is none.
        for console in ["serial", "console"] {
            let with = |mode: &str| json!({ console: { "mode": mode } });
            assert_eq!(edits(&with("Pty"), &with("Null")).unwrap(), [format!("{console}.mode")]);
            for (before, after) in [("Null", "Off"), ("Off", "Socket")] {
                let said = refused(with(before), with(after));
                let expected = format!(
                    "{console}.mode was {before:?} when the snapshot was made, and is {after:?}: \
                     a restore cannot change it"
                );
                assert_eq!(said, expected);
            }
        }
        let said = refused(json!({ "a": "x".repeat(100) }), json!({ "a": 1 }));
        assert!(said.contains('…'), "{said}");
    }
}
