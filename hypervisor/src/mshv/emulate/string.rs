//! The string instructions: one element, or as many as a `rep` prefix asks for.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::{
    Access, Decoded, EmulateError, Environment, Outcome, RegisterFile,
    execute::{linear_address, load, store},
};

/// Direction flag: addresses go down.
const DF: u64 = 1 << 10;

/// Elements of one call. A guest that repeats for longer comes back for the rest, so that its vCPU
/// can be stopped in between.
pub const MAX_ELEMENTS: u32 = 1024;

/// What is done to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `movs`: memory to memory.
    Move,
    /// `stos`: the accumulator to memory.
    Store,
    /// `lods`: memory to the accumulator.
    Load,
    /// `ins`: port to memory.
    In,
    /// `outs`: memory to port.
    Out,
}

/// A string instruction without its prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringOperation {
    kind: Kind,
    /// Bytes of one element.
    size: usize,
}

impl StringOperation {
    /// The string operation that an instruction is, if it is one.
    pub fn of(instruction: &Instruction) -> Option<Self> {
        let (kind, size) = match instruction.code() {
            Code::Movsb_m8_m8 => (Kind::Move, 1),
            Code::Movsw_m16_m16 => (Kind::Move, 2),
            Code::Movsd_m32_m32 => (Kind::Move, 4),
            Code::Movsq_m64_m64 => (Kind::Move, 8),
            Code::Stosb_m8_AL => (Kind::Store, 1),
            Code::Stosw_m16_AX => (Kind::Store, 2),
            Code::Stosd_m32_EAX => (Kind::Store, 4),
            Code::Stosq_m64_RAX => (Kind::Store, 8),
            Code::Lodsb_AL_m8 => (Kind::Load, 1),
            Code::Lodsw_AX_m16 => (Kind::Load, 2),
            Code::Lodsd_EAX_m32 => (Kind::Load, 4),
            Code::Lodsq_RAX_m64 => (Kind::Load, 8),
            Code::Insb_m8_DX => (Kind::In, 1),
            Code::Insw_m16_DX => (Kind::In, 2),
            Code::Insd_m32_DX => (Kind::In, 4),
            Code::Outsb_DX_m8 => (Kind::Out, 1),
            Code::Outsw_DX_m16 => (Kind::Out, 2),
            Code::Outsd_DX_m32 => (Kind::Out, 4),
            _ => return None,
        };
        Some(Self { kind, size })
    }

    /// Whether it does port I/O.
    pub fn uses_port(self) -> bool {
        matches!(self.kind, Kind::In | Kind::Out)
    }

    /// Runs it on up to [`MAX_ELEMENTS`] elements. The registers count each element when it is
    /// done, as an interrupted processor would show them.
    pub fn run(
        self,
        decoded: &Decoded,
        registers: &mut RegisterFile,
        environment: &mut dyn Environment,
    ) -> Result<Outcome, EmulateError> {
        let pointers = Pointers::of(&decoded.instruction).ok_or_else(|| decoded.unsupported())?;
        let repeats = decoded.instruction.has_rep_prefix() || decoded.instruction.has_repne_prefix();
        if !repeats {
            self.element(decoded, &pointers, registers, environment)?;
            return Ok(Outcome::Completed);
        }
        for _ in 0..MAX_ELEMENTS {
            let left = registers.read(pointers.count).unwrap_or(0);
            if left == 0 {
                return Ok(Outcome::Completed);
            }
            self.element(decoded, &pointers, registers, environment)?;
            let _ = registers.write(pointers.count, left - 1);
        }
        let left = registers.read(pointers.count).unwrap_or(0);
        Ok(if left == 0 { Outcome::Completed } else { Outcome::Repeats })
    }

    fn element(
        self,
        decoded: &Decoded,
        pointers: &Pointers,
        registers: &mut RegisterFile,
        environment: &mut dyn Environment,
    ) -> Result<(), EmulateError> {
        let source = match pointers.source_operand {
            Some(operand) => Some(linear_address(decoded, operand, registers)?),
            None => None,
        };
        let destination = match pointers.destination_operand {
            Some(operand) => Some(linear_address(decoded, operand, registers)?),
            None => None,
        };
        // Both ends are checked before a device sees anything: a read of its register may have
        // consumed something that a fault of the other end would lose.
        if let Some(address) = source {
            environment.probe(address, self.size, Access::Read)?;
        }
        if let Some(address) = destination {
            environment.probe(address, self.size, Access::Write)?;
        }
        let port = u16::try_from(registers.read(Register::DX).unwrap_or(0)).unwrap_or(0);
        let accumulator = match self.size {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        let mut buffer = [0; 8];
        let element = buffer.get_mut(..self.size).ok_or_else(|| decoded.unsupported())?;
        match (self.kind, source, destination) {
            (Kind::Move, Some(from), Some(to)) => {
                environment.read(from, element)?;
                environment.write(to, element)?;
            }
            (Kind::Store, None, Some(to)) => {
                store(environment, to, registers.read(accumulator).unwrap_or(0), self.size)?;
            }
            (Kind::Load, Some(from), None) => {
                let value = load(environment, from, self.size)?;
                let _ = registers.write(accumulator, value);
            }
            (Kind::In, None, Some(to)) => {
                environment.port_read(port, element);
                environment.write(to, element)?;
            }
            (Kind::Out, Some(from), None) => {
                environment.read(from, element)?;
                environment.port_write(port, element);
            }
            _ => return Err(decoded.unsupported()),
        }
        let step = self.size as u64;
        for pointer in [
            pointers.source_operand.map(|_| pointers.source),
            pointers.destination_operand.map(|_| pointers.destination),
        ]
        .into_iter()
        .flatten()
        {
            let at = registers.read(pointer).unwrap_or(0);
            let next = if registers.rflags & DF == 0 { at.wrapping_add(step) } else { at.wrapping_sub(step) };
            let _ = registers.write(pointer, next);
        }
        Ok(())
    }
}

/// The registers that a string instruction counts with, by its address size.
struct Pointers {
    source: Register,
    source_operand: Option<u32>,
    destination: Register,
    destination_operand: Option<u32>,
    count: Register,
}

impl Pointers {
    fn of(instruction: &Instruction) -> Option<Self> {
        let operand_of = |kinds: [OpKind; 3]| {
            (0..instruction.op_count()).find(|n| kinds.contains(&instruction.op_kind(*n)))
        };
        let source_operand = operand_of([OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI]);
        let destination_operand = operand_of([OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI]);
        let (source, destination, count) = match instruction.op_kind(source_operand.or(destination_operand)?)
        {
            OpKind::MemorySegSI | OpKind::MemoryESDI => (Register::SI, Register::DI, Register::CX),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => (Register::ESI, Register::EDI, Register::ECX),
            _ => (Register::RSI, Register::RDI, Register::RCX),
        };
        Some(Self { source, source_operand, destination, destination_operand, count })
    }
}
