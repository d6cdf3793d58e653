"""Micro-guests that try one thing each, as bytes.

A guest that finds what it looks for writes `K` to port 0x80; all of them end with HLT. The comments
are their source, in the GNU assembler's Intel syntax: a test assembles them and compares.

Addresses and selectors are those of `vmm_client.doctor.tables`.
"""

from __future__ import annotations

from typing import Final

RESULT_PORT: Final = 0x80
SPEED_PORT: Final = 0x84
SPEED_GPA: Final = 0x30000000
SUCCESS: Final = ord("K")

REAL_MODE: Final = bytes.fromhex(  # 16-bit
    "31 c0      "  # xor ax, ax
    "b9 64 00   "  # mov cx, 100
    "01 c8      "  # next: add ax, cx
    "50         "  # push ax
    "5b         "  # pop bx
    "e2 fa      "  # loop next
    "81 fb ba 13"  # cmp bx, 5050
    "75 04      "  # jne done
    "b0 4b      "  # mov al, 'K'
    "e6 80      "  # out 0x80, al
    "f4         "  # done: hlt
)

PROTECTED_MODE: Final = bytes.fromhex(  # 32-bit
    "31 c0            "  # xor eax, eax
    "b9 64 00 00 00   "  # mov ecx, 100
    "01 c8            "  # next: add eax, ecx
    "50               "  # push eax
    "5b               "  # pop ebx
    "e2 fa            "  # loop next
    "81 fb ba 13 00 00"  # cmp ebx, 5050
    "75 04            "  # jne done
    "b0 4b            "  # mov al, 'K'
    "e6 80            "  # out 0x80, al
    "f4               "  # done: hlt
)

PAGING_32: Final = bytes.fromhex(  # 32-bit
    "0f 20 e0                     "  # mov eax, cr4
    "83 c8 10                     "  # or eax, 0x10
    "0f 22 e0                     "  # mov cr4, eax
    "b8 00 50 00 00               "  # mov eax, 0x5000
    "0f 22 d8                     "  # mov cr3, eax
    "0f 20 c0                     "  # mov eax, cr0
    "0d 00 00 00 80               "  # or eax, 0x80000000
    "0f 22 c0                     "  # mov cr0, eax
    "eb 00                        "  # jmp paged
    "c7 05 00 00 02 00 2a 00 00 00"  # paged: mov dword ptr [0x20000], 42
    "83 3d 00 00 02 00 2a         "  # cmp dword ptr [0x20000], 42
    "75 04                        "  # jne done
    "b0 4b                        "  # mov al, 'K'
    "e6 80                        "  # out 0x80, al
    "f4                           "  # done: hlt
)

LONG_MODE: Final = bytes.fromhex(  # 64-bit
    "31 c0               "  # xor eax, eax
    "41 b8 64 00 00 00   "  # mov r8d, 100
    "4c 01 c0            "  # next: add rax, r8
    "50                  "  # push rax
    "41 5f               "  # pop r15
    "49 ff c8            "  # dec r8
    "75 f5               "  # jnz next
    "e8 05 00 00 00      "  # call check
    "b0 4b               "  # mov al, 'K'
    "e6 80               "  # out 0x80, al
    "f4                  "  # done: hlt
    "49 81 ff ba 13 00 00"  # check: cmp r15, 5050
    "75 f6               "  # jne done
    "c3                  "  # ret
)

SSE: Final = bytes.fromhex(  # 64-bit
    "0f 20 e0      "  # mov rax, cr4
    "0d 00 06 00 00"  # or eax, 0x600
    "0f 22 e0      "  # mov cr4, rax
    "b8 15 00 00 00"  # mov eax, 21
    "f2 0f 2a c0   "  # cvtsi2sd xmm0, eax
    "f2 0f 58 c0   "  # addsd xmm0, xmm0
    "f2 0f 2c c0   "  # cvttsd2si eax, xmm0
    "83 f8 2a      "  # cmp eax, 42
    "75 04         "  # jne done
    "b0 4b         "  # mov al, 'K'
    "e6 80         "  # out 0x80, al
    "f4            "  # done: hlt
)

SAVE_FPU: Final = bytes.fromhex(  # 64-bit
    "b8 01 00 00 00"  # mov eax, 1
    "0f a2         "  # cpuid
    "be 00 00 02 00"  # mov esi, 0x20000
    "0f 20 e0      "  # mov rax, cr4
    "0d 00 06 00 00"  # or eax, 0x600
    "0f ba e1 1a   "  # bt ecx, 26
    "73 17         "  # jnc old
    "0d 00 00 04 00"  # or eax, 0x40000
    "0f 22 e0      "  # mov cr4, rax
    "b8 01 00 00 00"  # mov eax, 1
    "31 d2         "  # xor edx, edx
    "0f ae 26      "  # xsave [rsi]
    "0f ae 2e      "  # xrstor [rsi]
    "eb 09         "  # jmp saved
    "0f 22 e0      "  # old: mov cr4, rax
    "0f ae 06      "  # fxsave [rsi]
    "0f ae 0e      "  # fxrstor [rsi]
    "b0 4b         "  # saved: mov al, 'K'
    "e6 80         "  # out 0x80, al
    "f4            "  # hlt
)

WIDE_ATOMICS: Final = bytes.fromhex(  # 64-bit
    "b8 01 00 00 00"  # mov eax, 1
    "0f a2         "  # cpuid
    "89 cf         "  # mov edi, ecx
    "0f ba e7 17   "  # bt edi, 23
    "73 0e         "  # jnc next
    "b8 70 00 00 00"  # mov eax, 0x70
    "f3 0f b8 c0   "  # popcnt eax, eax
    "83 f8 03      "  # cmp eax, 3
    "75 29         "  # jne done
    "0f ba e7 0d   "  # next: bt edi, 13
    "73 1f         "  # jnc good
    "be 00 20 02 00"  # mov esi, 0x22000
    "31 c0         "  # xor eax, eax
    "31 d2         "  # xor edx, edx
    "bb 07 00 00 00"  # mov ebx, 7
    "b9 09 00 00 00"  # mov ecx, 9
    "f0 48 0f c7 0e"  # lock cmpxchg16b [rsi]
    "48 83 7e 08 09"  # cmp qword ptr [rsi + 8], 9
    "75 04         "  # jne done
    "b0 4b         "  # good: mov al, 'K'
    "e6 80         "  # out 0x80, al
    "f4            "  # done: hlt
)

SOFTWARE_INTERRUPTS: Final = bytes.fromhex(  # 64-bit
    "31 db   "  # xor ebx, ebx
    "cc      "  # int3
    "cd 40   "  # int 0x40
    "83 fb 02"  # cmp ebx, 2
    "75 04   "  # jne done
    "b0 4b   "  # mov al, 'K'
    "e6 80   "  # out 0x80, al
    "f4      "  # done: hlt
    "90      "  # nop
)

COUNT_AND_RETURN: Final = bytes.fromhex(  # 64-bit
    "ff c3"  # inc ebx
    "48 cf"  # iretq
)

PAGE_FAULT: Final = bytes.fromhex(  # 64-bit
    "48 b8 00 00 00 00 02 00 00 00"  # mov rax, 0x200000000
    "48 8b 00                     "  # mov rax, [rax]
    "f4                           "  # hlt
)

CHECK_PAGE_FAULT: Final = bytes.fromhex(  # 64-bit
    "0f 20 d0                     "  # mov rax, cr2
    "48 bb 00 00 00 00 02 00 00 00"  # mov rbx, 0x200000000
    "48 39 d8                     "  # cmp rax, rbx
    "75 04                        "  # jne done
    "b0 4b                        "  # mov al, 'K'
    "e6 80                        "  # out 0x80, al
    "f4                           "  # done: hlt
)

RING_3: Final = bytes.fromhex(  # 64-bit
    "6a 23         "  # push 0x23
    "68 00 00 03 00"  # push 0x30000
    "6a 02         "  # push 0x2
    "6a 2b         "  # push 0x2b
    "68 00 10 01 00"  # push 0x11000
    "48 cf         "  # iretq
)

COUNT_AND_FAULT: Final = bytes.fromhex(  # 64-bit
    "b9 e8 03 00 00"  # mov ecx, 1000
    "ff c9         "  # next: dec ecx
    "75 fc         "  # jnz next
    "0f 0b         "  # ud2
)

CHECK_RING_3: Final = bytes.fromhex(  # 64-bit
    "48 83 7c 24 08 2b"  # cmp qword ptr [rsp + 8], 0x2b
    "75 04            "  # jne done
    "b0 4b            "  # mov al, 'K'
    "e6 80            "  # out 0x80, al
    "f4               "  # done: hlt
)

SYSCALL: Final = bytes.fromhex(  # 64-bit
    "b9 80 00 00 c0"  # mov ecx, 0xc0000080
    "0f 32         "  # rdmsr
    "83 c8 01      "  # or eax, 1
    "0f 30         "  # wrmsr
    "b9 81 00 00 c0"  # mov ecx, 0xc0000081
    "31 c0         "  # xor eax, eax
    "ba 10 00 1b 00"  # mov edx, 0x1b0010
    "0f 30         "  # wrmsr
    "b9 82 00 00 c0"  # mov ecx, 0xc0000082
    "b8 00 20 01 00"  # mov eax, 0x12000
    "31 d2         "  # xor edx, edx
    "0f 30         "  # wrmsr
    "b9 84 00 00 c0"  # mov ecx, 0xc0000084
    "b8 00 02 00 00"  # mov eax, 0x200
    "0f 30         "  # wrmsr
    "31 db         "  # xor ebx, ebx
    "6a 23         "  # push 0x23
    "68 00 00 03 00"  # push 0x30000
    "6a 02         "  # push 0x2
    "6a 2b         "  # push 0x2b
    "68 00 10 01 00"  # push 0x11000
    "48 cf         "  # iretq
)

CALL_TWICE: Final = bytes.fromhex(  # 64-bit
    "0f 05"  # again: syscall
    "eb fc"  # jmp again
)

COUNT_CALLS: Final = bytes.fromhex(  # 64-bit
    "8c c8   "  # mov eax, cs
    "a8 03   "  # test al, 3
    "75 0e   "  # jnz done
    "ff c3   "  # inc ebx
    "83 fb 02"  # cmp ebx, 2
    "74 03   "  # je twice
    "48 0f 07"  # sysretq
    "b0 4b   "  # twice: mov al, 'K'
    "e6 80   "  # out 0x80, al
    "f4      "  # done: hlt
)

SPEED_16: Final = bytes.fromhex(  # 16-bit
    "ba 84 00"  # again: mov dx, 0x84
    "66 ed   "  # in eax, dx
    "66 89 c1"  # mov ecx, eax
    "66 49   "  # next: dec ecx
    "75 fc   "  # jnz next
    "ee      "  # out dx, al
    "eb f1   "  # jmp again
)

SPEED_32: Final = bytes.fromhex(  # 32-bit
    "66 ba 84 00"  # again: mov dx, 0x84
    "ed         "  # in eax, dx
    "89 c1      "  # mov ecx, eax
    "49         "  # next: dec ecx
    "75 fd      "  # jnz next
    "ee         "  # out dx, al
    "eb f3      "  # jmp again
)

SPEED_64: Final = bytes.fromhex(  # 64-bit
    "66 ba 84 00"  # again: mov dx, 0x84
    "ed         "  # in eax, dx
    "89 c1      "  # mov ecx, eax
    "ff c9      "  # next: dec ecx
    "75 fc      "  # jnz next
    "ee         "  # out dx, al
    "eb f2      "  # jmp again
)

SPEED_RING_3: Final = bytes.fromhex(  # 64-bit
    "48 c7 c2 00 00 00 30"  # mov rdx, 0x30000000
    "8b 02               "  # again: mov eax, [rdx]
    "89 c1               "  # mov ecx, eax
    "ff c9               "  # next: dec ecx
    "75 fc               "  # jnz next
    "89 02               "  # mov [rdx], eax
    "eb f4               "  # jmp again
)
