/* The system calls that any storage must make for a request, and nothing else: what the kernel
 * costs, below which no server comes, in whatever language it is written.
 *
 *     floor DIRECTORY        serves out of that directory, prints its port, runs until killed
 *
 * It speaks as much of the protocol (protocol/wire.md section 4) as `wire.py` asks for: 11 upload,
 * 12 delete, 13 set metadata, 14 download, 15 get metadata, 22 file info. Any other command is
 * answered with 50 bytes. It computes no CRC, survives no crash, checks next to nothing, and waits
 * for the rest of a request while others wait: it is no storage. */
#include <arpa/inet.h>
#include <endian.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { UPLOAD = 11, DELETE, SET_METADATA, DOWNLOAD, GET_METADATA, FILE_INFO = 22 };
enum { HEADER = 10, GROUP = 16, UPLOAD_HEAD = 15, METADATA_HEAD = 33, DOWNLOAD_HEAD = 32 };
enum { DIRECTORY = 4, REQUEST = 1 << 10, SMALL = 64 << 10, CHUNK = 512 << 10 };

static char request[CHUNK], answer[HEADER + SMALL];
static int binlog;

static uint64_t number(const char *field) {
    uint64_t value;
    memcpy(&value, field, sizeof value);
    return be64toh(value);
}

/* A name that is *length* bytes long at *field*, with room for a suffix behind it. */
static char *take_name(const char *field, uint64_t length) {
    static char name[256];
    if (length <= DIRECTORY || length > 127) length = 0;
    memcpy(name, field, length);
    memset(name + length, 0, sizeof name - length);
    return strstr(name, "..") ? memset(name, 0, sizeof name) : name;
}

static void set_header(uint64_t length, int status) {
    length = htobe64(length);
    memcpy(answer, &length, sizeof length);
    answer[8] = 100;
    answer[9] = status;
}

static void respond(int client, size_t length, int status) {
    set_header(length, status);
    send(client, answer, HEADER + length, MSG_NOSIGNAL);
}

static void log_change(char op, const char *name) {
    char line[256];
    write(binlog, line, snprintf(line, sizeof line, "1700000000 %c %s\n", op, name));
}

/* Content that has arrived is at *content*, the rest of *size* bytes is still to come. */
static void upload(int client, const char *content, size_t arrived, uint64_t size) {
    static unsigned long count;
    char name[64];
    int length = snprintf(name, sizeof name, "M00/00/00/%030lu.bin", count++);
    int fd = open(name + DIRECTORY, O_WRONLY | O_CREAT | O_EXCL, 0644);
    write(fd, content, arrived);
    for (size -= arrived; size; size -= arrived) {
        arrived = recv(client, request, size < CHUNK ? size : CHUNK, 0);
        write(fd, request, arrived);
    }
    close(fd);
    log_change('C', name);
    memcpy(answer + HEADER, "group1\0\0\0\0\0\0\0\0\0", GROUP);
    memcpy(answer + HEADER + GROUP, name, length);
    respond(client, GROUP + length, 0);
}

static void download(int client, const char *path) {
    struct stat info = {0};
    int fd = open(path, O_RDONLY);
    fstat(fd, &info);
    if (info.st_size <= SMALL) {
        respond(client, read(fd, answer + HEADER, SMALL), 0);
    } else {
        set_header(info.st_size, 0);
        send(client, answer, HEADER, MSG_NOSIGNAL | MSG_MORE);
        for (off_t sent = 0; sent < info.st_size;)
            if (sendfile(client, fd, &sent, info.st_size - sent) <= 0) break;
    }
    close(fd);
}

static void set_metadata(int client, char *name, const char *text, size_t length) {
    int fd = open("new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    write(fd, text, length);
    close(fd);
    strcat(name, "-m");
    rename("new", name + DIRECTORY);
    log_change('C', name);
    respond(client, 0, 0);
}

static void get_metadata(int client, char *name) {
    int fd = open(strcat(name, "-m") + DIRECTORY, O_RDONLY);
    ssize_t length = read(fd, answer + HEADER, SMALL);
    close(fd);
    respond(client, length > 0 ? length : 0, fd < 0 ? 2 : 0);
}

static void file_info(int client, const char *path) {
    struct stat info = {0};
    stat(path, &info);
    memset(answer + HEADER, 0, 40);
    memcpy(answer + HEADER, &info.st_size, sizeof info.st_size);
    respond(client, 40, 0);
}

static void delete(int client, char *name) {
    log_change('D', name);
    unlink(name + DIRECTORY);
    if (!unlink(strcat(name, "-m") + DIRECTORY)) log_change('D', name);
    respond(client, 0, 0);
}

static void serve(int client, const char *body, size_t arrived, int command) {
    uint64_t length = number(request);
    switch (command) {
    case UPLOAD:
        upload(client, body + UPLOAD_HEAD, arrived - UPLOAD_HEAD, number(body + 1));
        break;
    case DOWNLOAD:
        download(client, take_name(body + DOWNLOAD_HEAD, length - DOWNLOAD_HEAD) + DIRECTORY);
        break;
    case SET_METADATA:
        length -= METADATA_HEAD + number(body);
        set_metadata(client, take_name(body + METADATA_HEAD, number(body)),
                     body + arrived - length, length);
        break;
    case GET_METADATA:
        get_metadata(client, take_name(body + GROUP, length - GROUP));
        break;
    case FILE_INFO:
        file_info(client, take_name(body + GROUP, length - GROUP) + DIRECTORY);
        break;
    case DELETE:
        delete(client, take_name(body + GROUP, length - GROUP));
        break;
    default:
        send(client, answer, 50, MSG_NOSIGNAL);
    }
}

/* Serve one request; false when the client has gone. Of an upload its head is enough. */
static int receive(int client) {
    size_t have = 0, wanted = HEADER;
    while (have < wanted) {
        ssize_t count = recv(client, request + have, CHUNK - have, 0);
        if (count <= 0) return 0;
        have += count;
        if (have >= HEADER)
            wanted = HEADER + (request[8] == UPLOAD ? UPLOAD_HEAD : number(request));
        if (wanted > REQUEST) return 0;
    }
    serve(client, request + HEADER, have - HEADER, request[8]);
    return 1;
}

int main(int count, char **arguments) {
    if (count != 2 || chdir(arguments[1]) || mkdir("00", 0755) || mkdir("00/00", 0755)) return 1;
    binlog = open("binlog", O_WRONLY | O_CREAT | O_APPEND, 0644);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, poll = epoll_create1(0);
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 64)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[64];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int turn = epoll_wait(poll, ready, 64, -1);
        for (int i = 0; i < turn; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                event.data.fd = accept(listener, 0, 0);
                setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
            } else if (!receive(fd))
                close(fd);
        }
    }
}
