// A server for TVM's RPC that needs TVM's runtime library and nothing else: no Python.
// For boards without it, and for QEMU, where starting Python takes a quarter of a minute.
//
//   tvm-mobilenet rpc package --target rpi4 -o server    compiles it and adds the runtime
//   server/rpc_server --tracker 127.0.0.1:9190 --key rpi4
//
// Speaks what tvm/rpc/server.py speaks. Each session is a process of its own with a folder of its
// own; a session that crashes or exceeds the time its client asked for costs only itself.
//
// TVM's RPC has no authentication and no encryption: whoever reaches the server can run what they
// like as its user. It listens on loopback unless --host says otherwise; tunnel to it instead:
//   ssh -N -L 9190:127.0.0.1:9190 -R 9090:127.0.0.1:9090 TRACKER_MACHINE

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// tvm/rpc/base.py
constexpr int32_t kMagic = 0xFF271, kMismatch = kMagic + 2, kTrackerMagic = 0x2F271;
constexpr int kPut = 3, kUpdateInfo = 5, kPendingKeys = 7;
constexpr int kMostBytes = 1 << 20;  // of a key or of a tracker's message
constexpr int kPingMilliseconds = 2000;
constexpr int kLeaveSeconds = 2;  // for a session to end by itself once its client has gone
constexpr int kUnusedSeconds = 6;  // a password taken and not used for so long is replaced

struct Options {
  std::string host = "127.0.0.1", port = "9090", key, tracker_host, tracker_port, advertise;
};

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A socket that closes itself.
class Socket {
 public:
  explicit Socket(int descriptor = -1) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  int get() const { return descriptor_; }

  void Send(const void* data, size_t size) const {
    for (auto at = static_cast<const char*>(data); size > 0;) {
      const ssize_t sent = send(descriptor_, at, size, MSG_NOSIGNAL);
      if (sent <= 0) throw std::runtime_error("connection lost");
      at += sent;
      size -= static_cast<size_t>(sent);
    }
  }
  void Send(int32_t value) const { Send(&value, sizeof value); }
  void SendText(const std::string& text) const {
    Send(static_cast<int32_t>(text.size()));
    Send(text.data(), text.size());
  }
  int32_t Receive() const {
    int32_t value;
    Receive(&value, sizeof value);
    return value;
  }
  std::string ReceiveText() const {
    const int32_t size = Receive();
    if (size < 0 || size > kMostBytes) throw std::runtime_error("no message of TVM's RPC");
    std::string text(static_cast<size_t>(size), '\0');
    Receive(text.data(), text.size());
    return text;
  }
  // 0: no limit, as a session needs it.
  void LimitWaiting(int seconds) const {
    const timeval limit{seconds, 0};
    setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  }

 private:
  void Receive(void* data, size_t size) const {
    for (auto at = static_cast<char*>(data); size > 0;) {
      const ssize_t got = recv(descriptor_, at, size, 0);
      if (got <= 0) throw std::runtime_error("connection lost");
      at += got;
      size -= static_cast<size_t>(got);
    }
  }
  int descriptor_;
};

// A listening socket, or one connected.
Socket Open(const std::string& host, const std::string& port, bool listening) {
  addrinfo wanted{}, *found = nullptr;
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = listening ? AI_PASSIVE : 0;
  if (const int code = getaddrinfo(host.c_str(), port.c_str(), &wanted, &found); code != 0)
    throw std::runtime_error(host + ":" + port + ": " + gai_strerror(code));
  Socket opened(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  bool done;
  if (listening) {
    setsockopt(opened.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    done = bind(opened.get(), found->ai_addr, found->ai_addrlen) == 0 && listen(opened.get(), 8) == 0;
  } else {
    opened.LimitWaiting(10);
    done = connect(opened.get(), found->ai_addr, found->ai_addrlen) == 0;
  }
  const std::string reason = std::strerror(errno);
  freeaddrinfo(found);
  if (!done) throw std::runtime_error(host + ":" + port + ": " + reason);
  return opened;
}

int PortOf(const Socket& listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

// The device as the tracker sees it: a password for one client, given out once.
class Registration {
 public:
  Registration(const Options& options, int port)
      : options_(options), port_(port), random_(std::random_device{}()) {}

  // What a client must present now. Registers anew after a session and with a tracker come back.
  const std::string& Password(bool anew) {
    if (options_.tracker_host.empty()) return options_.key;
    if (connection_.get() < 0) {
      connection_ = Open(options_.tracker_host, options_.tracker_port, false);
      connection_.Send(kTrackerMagic);
      if (connection_.Receive() != kTrackerMagic) throw std::runtime_error("it is no tracker");
      Ask("[" + std::to_string(kUpdateInfo) + ", {\"key\": \"server:" + options_.key +
          "\", \"addr\": [" + Advertised() + ", " + std::to_string(port_) + "]}]");
      anew = true;
    }
    if (anew) {
      password_ = options_.key + ":" + std::to_string(random_());
      Ask("[" + std::to_string(kPut) + ", \"" + options_.key + "\", [" + std::to_string(port_) +
          ", \"" + password_ + "\"], " + Advertised() + "]");
      seen_ = Clock::now();
    }
    return password_;
  }
  // A client that was given the password and did not come must not hold the device.
  void Ping() {
    if (options_.tracker_host.empty() || connection_.get() < 0) return;
    const auto pending = Ask("[" + std::to_string(kPendingKeys) + "]");
    if (pending.find('"' + password_ + '"') != std::string::npos) seen_ = Clock::now();
    if (Clock::now() - seen_ > std::chrono::seconds(kUnusedSeconds)) Password(true);
  }
  void Drop() { connection_ = Socket(); }

 private:
  std::string Ask(const std::string& message) const {
    connection_.SendText(message);
    return connection_.ReceiveText();
  }
  std::string Advertised() const {
    return options_.advertise.empty() ? "null" : '"' + options_.advertise + '"';
  }

  const Options& options_;
  const int port_;
  std::mt19937_64 random_;
  Socket connection_;
  std::string password_;
  Clock::time_point seen_;
};

struct Client {
  Socket connection;
  double seconds;  // that the session may last; 0: no limit
};

// The handshake of a connection; nothing when it is not our client.
std::optional<Client> Accept(const Socket& listener, const Options& options,
                             const std::string& password) {
  Socket connection(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (connection.get() < 0) return std::nullopt;
  connection.LimitWaiting(5);
  try {
    if (connection.Receive() != kMagic) return std::nullopt;
    const std::string sent = connection.ReceiveText();
    const size_t end = sent.find(' ');
    if (sent.substr(0, end) != "client:" + password) {
      connection.Send(kMismatch);
      return std::nullopt;
    }
    const std::string option = "-timeout=";
    const size_t at = sent.find(option);
    const double seconds =
        at == std::string::npos ? 0 : std::strtod(sent.c_str() + at + option.size(), nullptr);
    connection.Send(kMagic);
    connection.SendText("server:" + options.key);
    connection.LimitWaiting(0);
    const int yes = 1;  // notice a client that vanished
    setsockopt(connection.get(), SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(connection.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return Client{std::move(connection), seconds};
  } catch (const std::runtime_error&) {  // it vanished or said nothing
    return std::nullopt;
  }
}

// In the session's process: what a client may do here is TVM's and happens in `folder`.
[[noreturn]] void Session(int connection, const fs::path& folder) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  fs::current_path(folder);
  using tvm::ffi::Function;
  Function::SetGlobal("tvm.rpc.server.workpath",
                      Function::FromTyped([folder](const std::string& name) {
                        return (folder / name).string();
                      }),
                      true);
  Function::SetGlobal("tvm.rpc.server.load_module",
                      Function::FromTyped([folder](const std::string& name) {
                        return tvm::ffi::Module::LoadFromFile((folder / name).string());
                      }),
                      true);
  Function::GetGlobalRequired("rpc.ServerLoop")(connection);
  std::_Exit(0);
}

// Waits for the session's end, its client's time limit, or a signal to stop; true for the last.
// A client that has gone ends the session too: TVM notices it only after the work it asked for.
bool Supervise(pid_t session, const Client& client, int signals) {
  const auto start = Clock::now();
  std::optional<Clock::time_point> gone;
  bool stop = false;
  while (waitpid(session, nullptr, WNOHANG) == 0) {
    const std::chrono::duration<double> used = Clock::now() - start;
    const bool over = client.seconds > 0 && used.count() >= client.seconds;
    if (over) {
      char message[96];
      std::snprintf(message, sizeof message,
                    "RPCSessionTimeoutError: Your %gs session has expired", client.seconds);
      tvm::ffi::Function::GetGlobalRequired("rpc.ReturnException")(client.connection.get(),
                                                                   std::string(message));
    }
    if (over || stop || (gone && Clock::now() - *gone > std::chrono::seconds(kLeaveSeconds))) {
      kill(session, SIGKILL);
      waitpid(session, nullptr, 0);
      return stop;
    }
    pollfd waited[] = {{signals, POLLIN, 0}, {client.connection.get(), POLLRDHUP, 0}};
    const double left = client.seconds > 0 ? client.seconds - used.count() : 1;
    poll(waited, gone ? 1 : 2, static_cast<int>(1000 * std::min(left, 1.0)) + 1);
    if (!gone && (waited[1].revents & (POLLRDHUP | POLLHUP | POLLERR))) gone = Clock::now();
    signalfd_siginfo info{};
    stop = waited[0].revents && read(signals, &info, sizeof info) == sizeof info &&
           info.ssi_signo != SIGCHLD;
  }
  return stop;
}

bool Serve(const Client& client, int signals) {
  std::string name = (fs::temp_directory_path() / "tvm-rpc-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw UsageError(name + ": " + std::strerror(errno));
  const pid_t session = fork();
  if (session == 0) Session(client.connection.get(), name);
  const bool stop = session < 0 ? false : Supervise(session, client, signals);
  std::error_code ignored;
  fs::remove_all(name, ignored);
  return stop;
}

int Run(const Options& options) {
  sigset_t handled;
  sigemptyset(&handled);
  for (const int number : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&handled, number);
  sigprocmask(SIG_BLOCK, &handled, nullptr);
  const int signals = signalfd(-1, &handled, SFD_CLOEXEC);
  Socket listener;
  try {
    listener = Open(options.host, options.port, true);
  } catch (const std::runtime_error& error) {
    throw UsageError(error.what());
  }
  const int port = PortOf(listener);
  std::cerr << "warning: TVM's RPC has no authentication: whoever reaches this server can run code "
               "as this user\n";
  std::cout << options.host << ':' << port << std::endl;
  Registration registration(options, port);
  for (bool anew = true;;) {
    std::string password;
    bool reached = true;
    try {
      password = registration.Password(anew);
      anew = false;
    } catch (const std::runtime_error& error) {
      std::cerr << "tracker: " << error.what() << "; trying again\n";
      registration.Drop();
      reached = false;
    }
    pollfd waited[] = {{signals, POLLIN, 0}, {listener.get(), POLLIN, 0}};
    if (poll(waited, reached ? 2 : 1, kPingMilliseconds) == 0 && reached) {
      try {
        registration.Ping();
      } catch (const std::runtime_error&) {
        registration.Drop();
      }
    }
    signalfd_siginfo info{};
    if (waited[0].revents && read(signals, &info, sizeof info) == sizeof info &&
        info.ssi_signo != SIGCHLD)
      return 0;
    if (!reached || !(waited[1].revents & POLLIN)) continue;
    if (const auto client = Accept(listener, options, password)) {
      if (Serve(*client, signals)) return 0;
      anew = true;
    }
  }
}

Options Parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = words[i];
    if (i + 1 == count) throw UsageError(name + " needs a value");
    const std::string value = words[i + 1];
    if (name == "--host") options.host = value;
    else if (name == "--port") options.port = value;
    else if (name == "--key") options.key = value;
    else if (name == "--advertise") options.advertise = value;
    else if (name == "--tracker" && value.find(':') != std::string::npos) {
      options.tracker_host = value.substr(0, value.rfind(':'));
      options.tracker_port = value.substr(value.rfind(':') + 1);
    } else throw UsageError(name + " " + value + " is not understood");
  }
  if (!options.tracker_host.empty() && options.key.empty())
    throw UsageError("a server that registers with a tracker needs --key KEY");
  if (options.key.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                    "._-") != std::string::npos)
    throw UsageError("a key has letters, digits, '.', '_' and '-' only");
  return options;
}

}  // namespace

int main(int count, char** words) {
  try {
    return Run(Parse(count, words));
  } catch (const UsageError& error) {
    std::cerr << "rpc_server: error: " << error.what()
              << "; usage: rpc_server [--host H] [--port P] [--tracker H:P] [--key K] "
                 "[--advertise H]\n";
    return 2;
  }
}
