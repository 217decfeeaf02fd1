//! Running a decoded instruction.

use iced_x86::{Mnemonic, OpKind, Register};

use super::{
    Access, Decoded, EmulateError, Environment, Fault, Mode, RegisterFile,
    alu::{self, Operation},
    registers::{mask, sign_extend},
    string::StringOperation,
};

/// Resume flag: suppresses instruction breakpoints for one instruction.
const RF: u64 = 1 << 16;

/// How far an instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; the instruction pointer is behind it.
    Completed,
    /// A repeated string instruction has elements left; the instruction pointer is still at it.
    Repeats,
}

/// Runs one instruction.
///
/// # Errors
/// It is not known, or an access of it faulted.
pub fn execute(
    decoded: &Decoded,
    registers: &mut RegisterFile,
    environment: &mut dyn Environment,
) -> Result<Outcome, EmulateError> {
    let outcome = match StringOperation::of(&decoded.instruction) {
        Some(operation) => operation.run(decoded, registers, environment)?,
        None => {
            two_operands(decoded, registers, environment)?;
            Outcome::Completed
        }
    };
    if outcome == Outcome::Completed {
        let next = registers.rip.wrapping_add(decoded.length() as u64);
        registers.rip = decoded.mode.instruction_pointer(next);
        registers.rflags &= !RF;
    }
    Ok(outcome)
}

fn two_operands(
    decoded: &Decoded,
    registers: &mut RegisterFile,
    environment: &mut dyn Environment,
) -> Result<(), EmulateError> {
    if decoded.instruction.op_count() != 2 {
        return Err(decoded.unsupported());
    }
    let operation = match decoded.instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => return copy(decoded, registers, environment, |value, _| value),
        Mnemonic::Movzx => return copy(decoded, registers, environment, |value, _| value),
        Mnemonic::Movsx | Mnemonic::Movsxd => return copy(decoded, registers, environment, sign_extend),
        Mnemonic::Movbe => return copy(decoded, registers, environment, reverse_bytes),
        Mnemonic::Xchg => return exchange(decoded, registers, environment),
        Mnemonic::Add => Operation::Add,
        Mnemonic::Sub | Mnemonic::Cmp => Operation::Sub,
        Mnemonic::And | Mnemonic::Test => Operation::And,
        Mnemonic::Or => Operation::Or,
        Mnemonic::Xor => Operation::Xor,
        _ => return Err(decoded.unsupported()),
    };
    let only_flags = matches!(decoded.instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
    let left = Operand::of(decoded, 0, registers)?;
    let right = Operand::of(decoded, 1, registers)?;
    if !only_flags {
        left.probe_write(environment)?;
    }
    let (result, flags) = alu::compute(
        operation,
        left.read(decoded, registers, environment)?,
        right.read(decoded, registers, environment)?,
        left.size(),
    );
    if !only_flags {
        left.write(decoded, registers, environment, result)?;
    }
    registers.rflags = (registers.rflags & !alu::STATUS) | flags;
    Ok(())
}

/// The second operand to the first, through `change` (value, size in bytes).
fn copy(
    decoded: &Decoded,
    registers: &mut RegisterFile,
    environment: &mut dyn Environment,
    change: impl Fn(u64, usize) -> u64,
) -> Result<(), EmulateError> {
    let to = Operand::of(decoded, 0, registers)?;
    let from = Operand::of(decoded, 1, registers)?;
    let value = from.read(decoded, registers, environment)?;
    to.write(decoded, registers, environment, change(value, from.size()))
}

fn exchange(
    decoded: &Decoded,
    registers: &mut RegisterFile,
    environment: &mut dyn Environment,
) -> Result<(), EmulateError> {
    let left = Operand::of(decoded, 0, registers)?;
    let right = Operand::of(decoded, 1, registers)?;
    left.probe_write(environment)?;
    right.probe_write(environment)?;
    let first = left.read(decoded, registers, environment)?;
    let second = right.read(decoded, registers, environment)?;
    // Memory first: should its write fail, the registers are as before.
    if matches!(left, Operand::Memory { .. }) {
        left.write(decoded, registers, environment, second)?;
        right.write(decoded, registers, environment, first)
    } else {
        right.write(decoded, registers, environment, first)?;
        left.write(decoded, registers, environment, second)
    }
}

fn reverse_bytes(value: u64, size: usize) -> u64 {
    match size {
        2..=8 => value.swap_bytes() >> (64 - 8 * size),
        _ => value,
    }
}

/// One operand, its address already formed.
#[derive(Clone, Copy, Debug)]
enum Operand {
    Register { register: Register, size: usize },
    Memory { address: u64, size: usize },
    Immediate(u64),
}

impl Operand {
    fn of(decoded: &Decoded, number: u32, registers: &RegisterFile) -> Result<Self, EmulateError> {
        let instruction = &decoded.instruction;
        if number >= instruction.op_count() {
            return Err(decoded.unsupported());
        }
        match instruction.op_kind(number) {
            OpKind::Register => {
                let register = instruction.op_register(number);
                let size = if register.is_segment_register() { 2 } else { register.size() };
                Ok(Self::Register { register, size })
            }
            OpKind::Memory => {
                let size = instruction.memory_size().size();
                if !matches!(size, 1 | 2 | 4 | 8) {
                    return Err(decoded.unsupported());
                }
                Ok(Self::Memory { address: linear_address(decoded, number, registers)?, size })
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Ok(Self::Immediate(instruction.immediate(number))),
            _ => Err(decoded.unsupported()),
        }
    }

    /// Bytes; an immediate has been extended to the whole width.
    fn size(self) -> usize {
        match self {
            Self::Register { size, .. } | Self::Memory { size, .. } => size,
            Self::Immediate(_) => 8,
        }
    }

    fn probe_write(self, environment: &mut dyn Environment) -> Result<(), Fault> {
        match self {
            Self::Memory { address, size } => environment.probe(address, size, Access::Write),
            Self::Register { .. } | Self::Immediate(_) => Ok(()),
        }
    }

    fn read(
        self,
        decoded: &Decoded,
        registers: &RegisterFile,
        environment: &mut dyn Environment,
    ) -> Result<u64, EmulateError> {
        match self {
            Self::Register { register, .. } => registers.read(register).ok_or_else(|| decoded.unsupported()),
            Self::Memory { address, size } => Ok(load(environment, address, size)?),
            Self::Immediate(value) => Ok(value),
        }
    }

    fn write(
        self,
        decoded: &Decoded,
        registers: &mut RegisterFile,
        environment: &mut dyn Environment,
        value: u64,
    ) -> Result<(), EmulateError> {
        match self {
            Self::Register { register, .. } => {
                registers.write(register, value).ok_or_else(|| decoded.unsupported())
            }
            Self::Memory { address, size } => Ok(store(environment, address, value, size)?),
            Self::Immediate(_) => Err(decoded.unsupported()),
        }
    }
}

/// Linear address of a memory operand.
pub(super) fn linear_address(
    decoded: &Decoded,
    operand: u32,
    registers: &RegisterFile,
) -> Result<u64, EmulateError> {
    let address = decoded.instruction.virtual_address(operand, 0, |register, _, _| {
        if !register.is_segment_register() {
            return registers.read(register);
        }
        // Long mode ignores the bases of these four (Intel SDM volume 3, 3.2.4).
        let flat = matches!(register, Register::ES | Register::CS | Register::SS | Register::DS);
        if decoded.mode == Mode::Bits64 && flat { Some(0) } else { registers.segment_base(register) }
    });
    address.map(|address| decoded.mode.linear(address)).ok_or_else(|| decoded.unsupported())
}

/// A little-endian value of 1 to 8 bytes.
pub(super) fn load(environment: &mut dyn Environment, address: u64, size: usize) -> Result<u64, Fault> {
    let mut bytes = [0; 8];
    if let Some(part) = bytes.get_mut(..size) {
        environment.read(address, part)?;
    }
    Ok(u64::from_le_bytes(bytes))
}

/// The lowest 1 to 8 bytes of a value, little-endian.
pub(super) fn store(
    environment: &mut dyn Environment,
    address: u64,
    value: u64,
    size: usize,
) -> Result<(), Fault> {
    let bytes = (value & mask(size)).to_le_bytes();
    match bytes.get(..size) {
        Some(part) => environment.write(address, part),
        None => Ok(()),
    }
}
