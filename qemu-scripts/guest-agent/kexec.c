/*
 * Makes another kernel ready to be started from a test guest's own, without the firmware in between:
 *
 *   kexec KERNEL INITRAMFS COMMAND-LINE
 *
 * A system call that the agent has no safe wrapper for, nor busybox a command. The agent starts it.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	if (syscall(SYS_kexec_file_load, open(argv[1], O_RDONLY), open(argv[2], O_RDONLY), strlen(argv[3]) + 1,
		    argv[3], 0UL)) {
		perror("kexec");
		return 1;
	}
	return 0;
}
