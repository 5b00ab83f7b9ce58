//! Every key of the configuration, declared once for people: `snowberry.toml(5)` is printed from
//! this list, and the nearest right key is looked for in it. A test holds it to the types.

/// One key of the file.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted from the top; what begins with `upstream.` stands in each `[[upstream]]` table.
    pub path: &'static str,
    /// What is written there.
    pub kind: &'static str,
    /// What holds without it.
    pub default: &'static str,
    /// What it does, in whole sentences.
    pub help: &'static str,
}

impl Key {
    /// The table it stands in, empty at the top, and its own name.
    pub fn split(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }
}

const fn key(
    path: &'static str,
    kind: &'static str,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key { path, kind, default, help }
}

/// All keys, in the order in which they are explained.
pub const KEYS: [Key; 47] = [
    key(
        "listen",
        "list of \"ADDRESS:PORT\"",
        "the sockets that systemd hands over, else [\"127.0.0.1:8500\"]",
        "Where to listen for plain HTTP. \"[::]:80\" is every address of the machine, IPv4 too; \
         peers outside the local network are turned away all the same (see allow). With port 0 \
         the system chooses a port; the log event \"listening\" tells which.",
    ),
    key(
        "name",
        "string",
        "\"snowberry\"",
        "The name of this cache: lower-case letters, digits and hyphens. It is part of the name \
         of the cache's own key when that is made, and is shown on its page.",
    ),
    key(
        "names",
        "list of strings",
        "[]",
        "Host names under which the page, the status and the metrics may be asked, besides \
         addresses, localhost and *.local: the name of a reverse proxy, for instance. Any other \
         Host header is refused there, so that a foreign web page cannot read them through a \
         browser in the house.",
    ),
    key(
        "allow",
        "list of \"ADDRESS/BITS\"",
        "[]",
        "Address prefixes that may ask besides loopback, private, link-local, unique-local and \
         shared addresses and the networks of the machine's own interfaces.",
    ),
    key(
        "state-dir",
        "path",
        "$STATE_DIRECTORY under systemd, else /var/lib/snowberry for root, else \
         $XDG_STATE_HOME/snowberry or ~/.local/state/snowberry",
        "The folder of what must not be lost: the cache's own key. It is made at first start, \
         for its owner only. Keep a backup of it.",
    ),
    key(
        "store-dir",
        "path",
        "\"/nix/store\"",
        "The store directory of the Nix clients. It must be that of every upstream.",
    ),
    key(
        "store.path",
        "path",
        "<state-dir>/store",
        "The folder of the store. When it lies on a disk of its own and that disk is missing, \
         the cache runs on without it, says so, and takes it up again when it is back.",
    ),
    key(
        "store.budget",
        "size",
        "90 % of what is free at first start, then fixed",
        "Bytes that stored NARs may take, such as \"200 GiB\". What was not used for the longest \
         time goes first. A reserve of the disk is left free besides.",
    ),
    key(
        "store.compression-level",
        "number, 1 to 19",
        "3",
        "The zstd level of what is stored: higher is smaller and slower to take in, and no slower \
         to serve. What comes from upstream as zstd already is kept as it is.",
    ),
    key(
        "scrub.every",
        "span",
        "\"30 d\"",
        "What is stored is read again within so long of running, a little each hour and rather \
         while nobody asks, and compared with its hash. What is damaged is withdrawn and fetched \
         again. With \"never\" only \"snowberry scrub\" does that.",
    ),
    key(
        "upstream.url",
        "URL",
        "none: it must be given",
        "https://HOST, http://HOST, s3://BUCKET?endpoint=HOST&region=REGION&profile=PROFILE as \
         Nix writes it, or file:///FOLDER. Upstreams are asked in the order of their tables.",
    ),
    key(
        "upstream.trusted-public-keys",
        "list of \"NAME:BASE64\"",
        "none: it must be given, or unsigned",
        "The keys whose signatures count for this upstream. What none of them signed is treated \
         as absent.",
    ),
    key(
        "upstream.unsigned",
        "true or false",
        "false",
        "Takes what this upstream says without any signature. Only for a folder or a server \
         that nobody else can write to; the clients still check signatures themselves.",
    ),
    key(
        "upstream.ca-file",
        "path",
        "none",
        "A PEM file with the certificate authority of this upstream, trusted beside those of \
         the system.",
    ),
    key(
        "upstream.credentials-file",
        "path",
        "the environment, then the profile in ~/.aws, then anonymous",
        "An AWS credentials file for an s3 upstream. Its content is never logged.",
    ),
    key(
        "upstream.netrc-file",
        "path",
        "none",
        "A netrc file with name and password for the host of an http or https upstream. Never \
         logged, never sent to another host.",
    ),
    key(
        "upstream.headers-file",
        "path",
        "none",
        "A file of header lines, such as \"Authorization: Bearer TOKEN\", sent with each request \
         to an http or https upstream. Never logged, never sent to another host.",
    ),
    key(
        "upstream.push",
        "true or false",
        "false",
        "Carries what the house builds to this upstream. Only for s3 and file; the credentials \
         of an s3 upstream must be allowed to put.",
    ),
    key(
        "upstream.limit",
        "size",
        "none",
        "Bytes a second of NARs that are fetched from this upstream, such as \"2 MiB\", all \
         transfers together: what is left of the line is for the rest of the house.",
    ),
    key(
        "push.tokens-file",
        "path",
        "<state-dir>/tokens",
        "The file of those who may write, made and changed by \"snowberry token\", read again at \
         once when it changes. It holds the hashes of the tokens, never a token. The holder of a \
         token can put paths onto every machine that trusts this cache's key. Without any token, \
         or with a file that cannot be read, nobody may write.",
    ),
    key(
        "push.plain",
        "true or false",
        "false",
        "Takes tokens over plain HTTP from other machines too, where whoever listens on the \
         network can read and use them. Otherwise only this machine may push over plain HTTP.",
    ),
    key(
        "push.everything",
        "true or false",
        "false",
        "Carries up also what another upstream has with the same NAR. Otherwise a bucket gets \
         what was built here, and not a second copy of cache.nixos.org.",
    ),
    key(
        "push.limit",
        "size",
        "none",
        "Bytes a second that all push targets together are sent, such as \"10 MiB\": what is \
         left of the line is for the rest of the house.",
    ),
    key(
        "push.nar-size-max",
        "size",
        "\"64 GiB\"",
        "The longest NAR that is taken by upload, unpacked. What is longer is refused for good.",
    ),
    key(
        "push.sign",
        "\"pushed\" or \"verified\"",
        "\"pushed\"",
        "What gets this cache's own signature: what was pushed here, or also what was fetched and \
         bore a signature that its upstream is trusted for. With \"verified\" a client needs this \
         cache's key only; whoever can sign for an upstream can then write to those clients.",
    ),
    key(
        "admin.socket",
        "path",
        "admin.sock in $RUNTIME_DIRECTORY under systemd, else /run/snowberry/admin.sock for \
         root's cache in /var/lib/snowberry, else <state-dir>/admin.sock",
        "The local socket for commands that change something, such as \"snowberry push retry\". \
         Its owner and group may use it. These commands cannot be given over the network.",
    ),
    key(
        "mdns.enabled",
        "true or false",
        "true",
        "Says the cache's name and address to the local network by multicast DNS, as NAME.local and \
         as the service _nix-cache._tcp, and looks for caches there on a client. A cache that \
         listens on loopback only says nothing in any case. Switch it off to leave it to \
         systemd-resolved or Avahi, for which files come with snowberry. Where another machine \
         has NAME.local already, NAME-2.local is taken, and the log and the page say so.",
    ),
    key(
        "mdns.interfaces",
        "list of names",
        "all that the server listens on but veth* docker* br-* virbr* cni* wg* tun* tap* \
         tailscale* zt* podman* lxc* vboxnet* vmnet*",
        "The network interfaces on which multicast DNS is spoken, such as \"eth0\"; with * at the \
         end for any rest. Loopback and point-to-point interfaces never are.",
    ),
    key(
        "spool.path",
        "path",
        "/var/lib/snowberry-spool for root, else $XDG_STATE_HOME/snowberry/spool or \
         ~/.local/state/snowberry/spool",
        "Where builds wait until they are pushed: \"snowberry hook\" notes them there as \
         post-build-hook of Nix, and \"snowberry forward\" or \"snowberry spool run\" pushes \
         them. What waits is kept from Nix's garbage collector.",
    ),
    key(
        "spool.exclude",
        "list of patterns",
        "[]",
        "What is not pushed, by the name of the store path (which follows the hash and its \
         hyphen): \"*\" stands for any characters, also none, \"?\" for one, and the whole name \
         must fit. For instance [\"*-source\", \"nixos-system-*\"].",
    ),
    key(
        "spool.age-max",
        "span",
        "\"14 d\"",
        "What could not be pushed for so long is dropped, and the garbage collector may take it. \
         \"snowberry spool status\" shows what was dropped.",
    ),
    key(
        "spool.bytes-max",
        "size",
        "\"20 GiB\"",
        "What builds that could not be pushed may take on the disk, without what they refer to. \
         Beyond it the oldest are dropped, so that a cache that is gone does not fill its builders.",
    ),
    key(
        "spool.to",
        "URL",
        "\"http://127.0.0.1:8501/push\", which is \"snowberry forward\"",
        "The cache that builds are pushed to. Only over https, to this machine, or where the cache \
         says push.plain = true is the token taken.",
    ),
    key(
        "spool.token-file",
        "path",
        "/etc/snowberry/token if it exists, else what Nix's netrc-file has for the host",
        "A file with the token that \"snowberry token add\" printed. It must be readable for \
         whoever runs \"snowberry forward\" or \"snowberry spool run\", and for nobody else. A \
         systemd credential of the name token goes before it.",
    ),
    key(
        "tls.listen",
        "list of \"ADDRESS:PORT\"",
        "the sockets that systemd hands over under the name \"https\", else none: no TLS",
        "Where to listen for HTTP over TLS, such as \"[::]:443\", besides plain HTTP. HTTP/2 and \
         HTTP/1.1 are spoken there. Over TLS tokens are taken from the whole network.",
    ),
    key(
        "tls.certificate-file",
        "path",
        "a certificate of this cache's own CA",
        "A PEM file with a certificate and its chain, used instead of one of the cache's own \
         making. It is read again when it changes; one that cannot be used is told in the log, and \
         the one before goes on. Otherwise the cache makes a CA and certificates for its names and \
         addresses in <state-dir>/tls and renews them, and machines that join trust that CA.",
    ),
    key(
        "tls.key-file",
        "path",
        "with certificate-file it must be given",
        "A PEM file with the private key of certificate-file. It is read again when it changes.",
    ),
    key(
        "page.clients",
        "true or false",
        "false",
        "Shows on the page which machines asked, by their addresses, and the latest paths with \
         size, hit or miss, and time: everybody in the house can read it then. \"snowberry status \
         --clients\" shows it in any case, to whoever may use the admin socket. It is kept in \
         memory only.",
    ),
    key(
        "forward.listen",
        "list of \"ADDRESS:PORT\"",
        "the sockets that systemd hands over, else [\"127.0.0.1:8501\"]",
        "Where \"snowberry forward\" answers the Nix of this machine. Loopback only.",
    ),
    key(
        "forward.cache",
        "http://HOST[:PORT] or https://HOST[:PORT]",
        "the cache that was joined, and others of the house that mDNS finds under the same CA",
        "The cache that is asked, and no other. A name that ends in .local is found by mDNS, any \
         other by the system. Over https its CA must be pinned: by \"snowberry join\" or \
         forward.ca-file.",
    ),
    key(
        "forward.ca-file",
        "path",
        "the one that \"snowberry join\" wrote",
        "A PEM file with the certificate authority of the cache (its /ca.pem). Nothing else is \
         trusted over TLS.",
    ),
    key(
        "forward.plain",
        "true or false",
        "false",
        "Speaks plain HTTP, and with any cache that announces itself: signatures still protect \
         what is read, but whoever is on the network sees what is asked. A token is not sent to a \
         cache that was found this way.",
    ),
    key(
        "forward.joined-file",
        "path",
        "/etc/snowberry/joined.toml, for a single user $XDG_CONFIG_HOME/snowberry/joined.toml",
        "What \"snowberry join\" wrote about the cache of this house. It is read again when it \
         changes.",
    ),
    key(
        "update.url",
        "URL",
        "none: nothing is looked for",
        "Where the appliance looks for its next version: a folder of an https or http server, or \
         file:///FOLDER, with the file \"latest\" and those that it names. Without it \"snowberry \
         update FILE\" updates by hand. What is fetched counts only when a release key of the image \
         has signed it. \"snowberry update --check\" says what there is.",
    ),
    key(
        "update.ca-file",
        "path",
        "none",
        "A PEM file with the certificate authority of the update server, trusted beside those of \
         the system.",
    ),
    key(
        "update.limit",
        "size",
        "none",
        "Bytes a second of an update that are fetched, such as \"1 MiB\": what is left of the line \
         is for the rest of the house.",
    ),
    key(
        "appliance.notes",
        "path",
        "\"/run/snowberry-appliance\"",
        "The folder in which updates and settings of the appliance tell the cache how they are, for \
         its page and its status. Where it is missing, this is no appliance.",
    ),
];
