//! The header in front of every packet (virtio 1.3 section 5.10.6). What a guest sends is 44 bytes of anything: reading
//! them never fails, and says nothing of whether they make sense.

/// Bytes of a header.
pub const HEADER: usize = 44;

/// The host's context id (virtio 1.3 section 5.10.4).
pub const HOST_CID: u64 = 2;

/// Socket type: a stream of bytes (virtio 1.3 section 5.10.6).
pub const STREAM: u16 = 1;

/// Operations (virtio 1.3 section 5.10.6).
pub mod operation {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// The connection is made.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, or none any more.
    pub const RST: u16 = 3;
    /// The sender sends no more, receives no more, or both.
    pub const SHUTDOWN: u16 = 4;
    /// Carries bytes.
    pub const RW: u16 = 5;
    /// Says how much room the sender has.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks how much room the receiver has.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`operation::SHUTDOWN`] (virtio 1.3 section 5.10.6.5).
pub mod shutdown {
    /// The sender receives no more.
    pub const RECEIVE: u32 = 1 << 0;
    /// The sender sends no more.
    pub const SEND: u32 = 1 << 1;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub source_cid: u64,
    /// Context id of the receiver.
    pub destination_cid: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// Bytes that follow the header.
    pub len: u32,
    /// Socket type, [`STREAM`].
    pub socket_type: u16,
    /// One of [`operation`].
    pub operation: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes of the sender's receive buffer.
    pub buffer: u32,
    /// Bytes that have left the sender's receive buffer since the connection was made, modulo 2^32.
    pub forwarded: u32,
}

impl Header {
    /// What 44 bytes say.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            source_cid: u64::from_le_bytes(fields.next()),
            destination_cid: u64::from_le_bytes(fields.next()),
            source_port: u32::from_le_bytes(fields.next()),
            destination_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            socket_type: u16::from_le_bytes(fields.next()),
            operation: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buffer: u32::from_le_bytes(fields.next()),
            forwarded: u32::from_le_bytes(fields.next()),
        }
    }

    /// Its 44 bytes.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let Self {
            source_cid,
            destination_cid,
            source_port,
            destination_port,
            len,
            socket_type,
            operation,
            flags,
            buffer,
            forwarded,
        } = self;
        let cids = [source_cid, destination_cid].into_iter().flat_map(u64::to_le_bytes);
        let ports = [source_port, destination_port, len].into_iter().flat_map(u32::to_le_bytes);
        let kinds = [socket_type, operation].into_iter().flat_map(u16::to_le_bytes);
        let credit = [flags, buffer, forwarded].into_iter().flat_map(u32::to_le_bytes);
        let mut bytes = [0; HEADER];
        for (byte, value) in bytes.iter_mut().zip(cids.chain(ports).chain(kinds).chain(credit)) {
            *byte = value;
        }
        bytes
    }

    /// The reset that answers it.
    #[must_use]
    pub fn reset(&self) -> Self {
        Self {
            source_cid: self.destination_cid,
            destination_cid: self.source_cid,
            source_port: self.destination_port,
            destination_port: self.source_port,
            socket_type: self.socket_type,
            operation: operation::RST,
            ..Self::default()
        }
    }
}

/// The bytes that are left to be read.
struct Fields<'bytes>(&'bytes [u8]);

impl Fields<'_> {
    /// The next `N`; zeros behind the end, which no field of a header is.
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_its_place() {
        let header = Header {
            source_cid: 0x0807_0605_0403_0201,
            destination_cid: 0x100f_0e0d_0c0b_0a09,
            source_port: 0x1413_1211,
            destination_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            socket_type: 0x1e1d,
            operation: 0x201f,
            flags: 0x2423_2221,
            buffer: 0x2827_2625,
            forwarded: 0x2c2b_2a29,
        };
        let bytes = header.to_bytes();
        assert!(bytes.iter().copied().eq(1..=44), "{bytes:?}");
        assert_eq!(Header::from_bytes(&bytes), header);
    }

    #[test]
    fn a_reset_goes_back_to_the_sender() {
        let header = Header {
            source_cid: 3,
            destination_cid: 2,
            source_port: 7,
            destination_port: 9,
            len: 5,
            socket_type: 4,
            operation: operation::RW,
            flags: 1,
            buffer: 10,
            forwarded: 11,
        };
        let expected = Header {
            source_cid: 2,
            destination_cid: 3,
            source_port: 9,
            destination_port: 7,
            socket_type: 4,
            operation: operation::RST,
            ..Header::default()
        };
        assert_eq!(header.reset(), expected);
    }
}
