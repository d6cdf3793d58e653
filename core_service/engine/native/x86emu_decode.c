/* SPDX-License-Identifier: Apache-2.0
 *
 * The next instruction, as far as its opcode: SDM vol. 2, 2.1.
 */
#include "x86emu.h"

#define ATTRIBUTE_BIG 0x400u
#define TWO_BYTES 0x0fu

static bool take_prefix(struct x86emu_code *code, uint8_t byte)
{
	switch (byte) {
	case 0x26: code->segment = SEG_ES; return true;
	case 0x2e: code->segment = SEG_CS; return true;
	case 0x36: code->segment = SEG_SS; return true;
	case 0x3e: code->segment = SEG_DS; return true;
	case 0x64: code->segment = SEG_FS; return true;
	case 0x65: code->segment = SEG_GS; return true;
	case 0x66: code->prefixes |= PREFIX_DATA; return true;
	case 0x67: code->prefixes |= PREFIX_ADDRESS; return true;
	case 0xf0: code->prefixes |= PREFIX_LOCK; return true;
	case 0xf2: code->prefixes |= PREFIX_REPNE; return true;
	case 0xf3: code->prefixes |= PREFIX_REP; return true;
	default: return false;
	}
}

static uint8_t next_byte(struct x86emu_cpu *cpu)
{
	struct x86emu_code *code = &cpu->code;
	if (code->length == X86EMU_INSTRUCTION)
		x86emu_fault(cpu, VECTOR_GP, 0);
	if (code->length == code->bytes) {
		cpu->nowhere = code->linear + code->bytes;
		x86emu_abandon(cpu, END_NOWHERE);
	}
	return code->byte[code->length++];
}

void x86emu_decode(struct x86emu_cpu *cpu)
{
	const struct x86emu_registers *registers = &cpu->emu->registers;
	const struct x86emu_segment *cs = &registers->segment[SEG_CS];
	struct x86emu_code *code = &cpu->code;
	uint32_t eip = registers->general[X86EMU_EIP];

	if (eip > cs->limit)
		x86emu_fault(cpu, VECTOR_GP, 0);
	*code = (struct x86emu_code){.segment = -1, .linear = cs->base + eip};
	code->bytes = x86emu_fetch(cpu, code->linear, X86EMU_INSTRUCTION, code->byte);
	uint8_t byte = next_byte(cpu);
	while (take_prefix(code, byte))
		byte = next_byte(cpu);
	code->opcode = byte == TWO_BYTES ? TWO_BYTES << 8 | next_byte(cpu) : byte;
	bool big = cs->attributes & ATTRIBUTE_BIG;
	code->operand32 = big != !!(code->prefixes & PREFIX_DATA);
	code->address32 = big != !!(code->prefixes & PREFIX_ADDRESS);
}

/* Where it cannot be fetched, one that is always trusted: the library meets the same. */
static uint8_t modrm(const struct x86emu_code *code)
{
	return code->length < code->bytes ? code->byte[code->length] : 0xc0;
}

static unsigned modrm_mode(const struct x86emu_code *code)
{
	return modrm(code) >> 6;
}

unsigned x86emu_modrm_register(const struct x86emu_code *code)
{
	return modrm(code) >> 3 & 7;
}

bool x86emu_trusted(const struct x86emu_code *code)
{
	switch (code->opcode) {
	case 0x0f00: /* LTR loads no descriptor, VERR and VERW check none, LLDT refuses all */
		return false;
	case 0x0f01: /* LMSW can leave protected mode, and clears what it cannot reach */
		return x86emu_modrm_register(code) != 6;
	case 0x0f20: case 0x0f22: /* CR0, CR2 and CR3 */
		return x86emu_modrm_register(code) == 0 || x86emu_modrm_register(code) == 2 || x86emu_modrm_register(code) == 3;
	case 0x0f21: case 0x0f23: /* debug registers that do nothing */
	case 0x0f33:              /* RDPMC, always 0 */
		return false;
	case 0x0fa3: case 0x0fab: case 0x0fb3: case 0x0fbb: /* BT and the like: a wrong address in memory */
		return modrm_mode(code) == 3;
	default:
		return true;
	}
}
