"""The base of both downloaders: settings, permitted addresses, and rows of answers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.schema import (
    HEIGHT,
    HTTP_STATUS,
    IMAGE,
    IMAGE_BYTES,
    LISTED,
    REASON,
    REASON_TYPE,
    SHA256,
    URL,
    WIDTH,
    Column,
)
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import OneUp, Resources, RowStage, ZeroUp

NETWORK = "check that this machine is online and looks names up; proxies are not used"
SLOWER = "give the hosts time: lower `max_per_host` and `concurrency`, then --retry it"
COLUMN = "check that the ingest stage takes the links from the right column: its `url_col`"
THEIRS = "the hosts do not serve these files any more: take another list, or newer links"
ADVICE = {  # shown if most rows have the reason; other reasons are verdicts on a body
    "no_url": COLUMN,
    "bad_url": f"{COLUMN}; a link begins with http:// or https://",
    "no_sha256": "the pool has no digests: set `verify_sha256: false`",
    "private_address": "the links lead to this machine or its network: to ask there, set"
    " `allow_private_addresses: true`, or the networks: [10.0.0.0/8]",
    "unresolvable": NETWORK,
    "refused": "nothing listens there: start the server, or check host and port of the links",
    "tls": "check this machine's clock and certificates, and what stands between it and the web",
    "timeout": f"{NETWORK}; or the hosts are slow: raise `timeout_s`, lower `concurrency`",
    "host_down": f"{NETWORK}; or the hosts are slow: raise `timeout_s`, lower `max_per_host`",
    "connection_lost": NETWORK,
    "bad_response": "what answers there speaks no HTTP: check host and port of the links",
    "redirect_loop": "raise `max_redirects`, or check the links in a browser",
    "http_3xx": "check the links in a browser: these answers lead nowhere",
    "http_403": "the hosts refuse: say who asks with `user_agent_token`, or ask them",
    "http_404": THEIRS,
    "http_410": THEIRS,
    "http_429": SLOWER,
    "http_4xx": "check the links in a browser: the hosts refuse them as they are",
    "http_500": SLOWER,
    "http_5xx": SLOWER,
    "hash_mismatch": "the hosts serve other files than the pool's digests are of: set"
    " `verify_sha256: false` to take them",
    "not_an_image": f"{COLUMN}; these lead to pages, not to pictures",
    "undecodable": f"look at one in a browser; and {COLUMN}",
    "truncated": "what answers there cuts files short: check host, port and what stands between",
}
OWN_CODE = (403, 404, 410, 429, 500)  # other statuses share http_3xx, http_4xx, http_5xx
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
WRITES = (IMAGE, IMAGE_BYTES, WIDTH, HEIGHT, SHA256, HTTP_STATUS)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The outcome of a URL: the last HTTP status; a reason, or the result of the body."""

    status: int | None = None
    reason: str | None = None
    kept: Any = None  # what the client's `keep` returned


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The image to store, its size and its body's digest; or the reason that there is none."""

    sha256: str
    image: bytes | None = None
    width: int | None = None
    height: int | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Download(RowStage):
    """The settings of both downloaders, for images, bodies and hosts."""

    # how to resize to `image_size`: border pads to a square, keep_ratio fits the shorter side,
    # keep_ratio_largest the longer one, center_crop cuts a square; no keeps the image
    resize: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = (
        "keep_ratio_largest"
    )
    image_size: OneUp = 512  # pixels of the side that `resize` fits
    resize_only_if_bigger: bool = True  # do not enlarge images
    upscale_interpolation: Interpolation = "lanczos"  # interpolation of enlarged images
    # interpolation of reduced images
    downscale_interpolation: Interpolation = "area"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"  # of the stored image
    # quality of JPEG and WebP, 1 to 100; for PNG the compression, 0 to 9
    encode_quality: Annotated[int, Meta(ge=0, le=100)] = 95
    skip_reencode: bool = True  # keep the bytes of an image that fits and has encode_format
    min_image_size: ZeroUp = 0  # least pixels of the shorter side; smaller is `too_small`
    # cap on the longer side to the shorter; above it is `extreme_aspect`
    max_aspect_ratio: Annotated[float, Meta(ge=1)] | None = None
    # cap on an image's pixels before decoding; LAION's default, against decompression bombs
    max_pixels: OneUp = 89_478_484
    max_body_bytes: OneUp = 20_000_000  # cap on an answer's body; above it is `too_large`
    # compare with the pool's `sha256`; another image is `hash_mismatch`
    verify_sha256: bool = False
    # your name in the User-Agent, which X-Robots-Tag may address
    user_agent_token: str | None = None
    # directives of X-Robots-Tag that make a row `opt_out`; [] ignores all
    disallowed_header_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    # true allows loopback; else networks and host names: [10.0.0.0/8, images.internal]
    allow_private_addresses: bool | tuple[str, ...] = False

    determinism = "recorded"
    resources = Resources(cpus=1, memory_gb=4)
    writes = WRITES

    @property
    def advice(self) -> dict[str, str]:
        return {reason: do for reason, do in ADVICE.items() if reason in self.reasons}

    @property
    def reads(self) -> tuple[Column, ...]:
        return (URL, SHA256) if self.verify_sha256 else (URL,)

    def __post_init__(self) -> None:
        uses = type(self).__module__.removeprefix("clipmill.stages.")
        token = self.user_agent_token or ""
        if not (token.isascii() and token.isprintable()):
            where, do = f"{uses}, key `user_agent_token`", "write ASCII letters, as HTTP does"
            raise RecipeError(f"user_agent_token is {token!r}", where, do)
        best = 9 if self.encode_format == "png" else 100
        if not 0 <= self.encode_quality <= best:
            raise RecipeError(
                found=f"encode_quality is {self.encode_quality}, not 0 to {best}",
                where=f"{uses} with encode_format {self.encode_format}",
                do="set it; for png it is the compression, 0 to 9",
            )
        try:
            allowed(self.allow_private_addresses)
        except ValueError as error:
            found, do = error.args
            raise RecipeError(found, f"{uses}, key `allow_private_addresses`", do) from None


def reason_of(status: int) -> str:
    """Returns the reason for a status without a body."""
    family = f"http_{status}" if status in OWN_CODE else f"http_{status // 100}xx"
    return family if 300 <= status < 600 else "bad_response"


def wishes(batch: pa.Table, verify_sha256: bool) -> list[tuple[str | None, str | None]]:
    """Returns URL and crawled digest of every row; None if missing, or not to be verified."""
    urls = [url if url and url.strip() else None for url in batch[URL.name].to_pylist()]
    crawled = batch[SHA256.name].to_pylist() if verify_sha256 else [None] * len(urls)
    return list(zip(urls, crawled, strict=True))


def to_fetch(wished: list[tuple[str | None, str | None]], verify_sha256: bool) -> list[str]:
    """Returns the URLs to fetch, without repeats."""
    return list(dict.fromkeys(url for url, sha in wished if url and (sha or not verify_sha256)))


def answered(
    wished: list[tuple[str | None, str | None]],
    verify_sha256: bool,
    answers: Iterable[Answer | None],
) -> pa.Table:
    """Returns image, size, digest and status of every row; an answer's `kept` must be a Kept."""
    rows = [
        _row(answer, url, sha, verify_sha256)
        for (url, sha), answer in zip(wished, answers, strict=True)
    ]
    columns = {c.name: pa.array([r.get(c.name) for r in rows], c.dtype) for c in WRITES}
    reason = pa.array([r.get(REASON.name) for r in rows], pa.string())
    return pa.table({**columns, REASON.name: reason.cast(REASON_TYPE)})


def _row(answer: Answer | None, url: str | None, crawled: str | None, verify: bool) -> dict:
    """Returns the columns of one row, by name; a missing column is null."""
    if url is None:
        return {REASON.name: "no_url"}
    if answer is None or (verify and not crawled):
        return {REASON.name: "no_sha256"}
    columns, image = {HTTP_STATUS.name: answer.status}, answer.kept
    if LISTED in (answer.reason, image and image.reason):
        return {REASON.name: LISTED}  # and no status: it would tell a link from a body
    if answer.reason:
        return {**columns, REASON.name: answer.reason}
    if crawled and crawled.lower() != image.sha256:
        return {**columns, REASON.name: "hash_mismatch"}
    if image.reason:
        return {**columns, REASON.name: image.reason}
    return {**columns, **vars(image), IMAGE_BYTES.name: len(image.image)}


Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK = ("127.0.0.0/8", "::1/128")
# Link-local addresses and clouds' metadata services, which hold secrets: no setting opens these.
NEVER = tuple(
    ip_network(text)
    for text in (
        *("169.254.0.0/16", "fe80::/10"),  # the first has AWS, Azure, Google and most others
        *("192.0.0.0/24", "168.63.129.16/32", "100.100.100.200/32"),  # Oracle, Azure, Alibaba
        *("fd00:ec2::/32", "fd20:ce::254/128"),  # AWS, Google
        "64:ff9b:1::/48",  # RFC 8215: embeds an IPv4 address at a place that only its network knows
    )
)
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
HOST_NAME = re.compile(r"([a-z0-9_-]+\.)*(?=[a-z0-9_-]*[a-z])[a-z0-9_-]+")
WRITE = "write networks such as 10.0.0.0/8 and host names such as images.internal"


@dataclass(frozen=True)
class Allowed:
    """Addresses and hosts permitted in addition to the public internet."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    def admits(self, address: str, host: str) -> bool:
        """Returns whether a connection for this host may go to this address.

        False for anything but the plain form of an address.
        """
        try:
            target = _target(ip_address(address))
        except ValueError:
            return False
        if any(target in network for network in NEVER):
            return False
        inner = target.is_multicast or target.is_reserved or getattr(target, "is_site_local", False)
        if (target.is_global and not inner) or any(target in some for some in self.networks):
            return True
        return host.lower().rstrip(".") in self.hosts


def allowed(setting: bool | Iterable[str]) -> Allowed:
    """Parses `allow_private_addresses`; true permits loopback.

    Raises ValueError, with the fault and what to write, for an entry that cannot take effect.
    """
    if isinstance(setting, bool):
        setting = LOOPBACK if setting else ()
    networks, hosts = [], []
    for entry in (text.strip().lower() for text in setting):
        if HOST_NAME.fullmatch(entry.rstrip(".")):
            hosts.append(entry.rstrip("."))
        else:
            networks.append(_network(entry))
    return Allowed(tuple(networks), frozenset(hosts))


def _network(entry: str) -> Network:
    try:
        network = ip_network(entry, strict=False)
    except ValueError:
        raise ValueError(f"'{entry}' is no network and no host name", WRITE) from None
    first = network.network_address
    if _target(first) is not first:
        raise ValueError(f"'{entry}' is IPv4 inside IPv6", "write the IPv4 network itself")
    if str(first) != entry.partition("/")[0]:
        raise ValueError(f"'{entry}' is not how that network is written", f"write {network}")
    if any(first in never and network.prefixlen >= never.prefixlen for never in NEVER):
        raise ValueError(f"'{entry}' is link-local or tells secrets", "leave it out: none opens it")
    return network


def _target(address: Address) -> Address:
    """Returns the address that packets reach: the IPv4 address inside an IPv6 one, if any."""
    if not isinstance(address, IPv6Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
