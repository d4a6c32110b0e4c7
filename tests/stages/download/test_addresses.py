"""Which addresses may be connected to, and which entries of a recipe open some."""

import pytest

from clipmill.stages.download._rows import allowed

EVERYTHING = ("0.0.0.0/0", "::/0")
PUBLIC = ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::")
LOOPBACK = ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")
PRIVATE = (
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::ffff:10.0.0.1", "fc00::1"),
    "fec0::1",
    *("0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "ff02::1"),
)  # fmt: skip
NEVER = (
    *("169.254.0.1", "169.254.169.254", "169.254.170.2", "fe80::1", "fe80::1%lo", "febf::1"),
    *(
        "192.0.0.8",
        "192.0.0.192",
        "168.63.129.16",
        "100.100.100.200",
        "fd00:ec2::254",
        "fd20:ce::254",
    ),
    *("::ffff:169.254.169.254", "::ffff:a83f:8110", "64:ff9b::a9fe:a9fe", "64:ff9b::c000:c0"),
    *(
        "2002:a9fe:a9fe::",
        "2002:a83f:8110:1::1",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:a9fe:a9:fe00::",
    ),
)
NO_ADDRESS = ("2130706433", "127.1", "0x7f.1", "0177.0.0.1", "127.0.0.1:80", "localhost", "")


def admitted(setting, *addresses, host="any.test"):
    may = allowed(setting)
    return {address for address in addresses if may.admits(address, host)}


def test_without_a_setting_only_the_public_internet_is_asked():
    assert admitted(False, *PUBLIC, *LOOPBACK, *PRIVATE, *NEVER, *NO_ADDRESS) == set(PUBLIC)
    assert admitted((), *PUBLIC, *LOOPBACK, *PRIVATE) == set(PUBLIC)


def test_true_opens_loopback_alone():
    found = admitted(True, *PUBLIC, *LOOPBACK, *PRIVATE, *NEVER, *NO_ADDRESS)
    assert found == {*PUBLIC, *LOOPBACK}


def test_a_network_opens_its_addresses_in_every_form():
    asked = (*LOOPBACK, "10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "11.0.0.1", "192.168.1.1")
    assert admitted(["10.0.0.0/8"], *asked) == {*asked[6:10]}
    assert admitted(["192.168.1.1", "fc00::/7"], *PRIVATE) == {"192.168.1.1", "fc00::1"}


def test_a_name_opens_what_it_resolves_to_for_itself_only():
    asked = (*LOOPBACK, *PRIVATE)
    for host in ("images.internal", "Images.Internal", "images.internal."):
        assert admitted(["IMAGES.internal"], *asked, host=host) == set(asked)
    for host in ("internal", "x.images.internal", "images.internal.test", "10.0.0.1", ""):
        assert admitted(["images.internal"], *asked, host=host) == set()


@pytest.mark.parametrize("address", NEVER)
def test_link_local_and_metadata_addresses_are_opened_by_nothing(address):
    assert not admitted((*EVERYTHING, "images.internal"), address, host="images.internal")
    assert not admitted(False, address) | admitted(True, address)


@pytest.mark.parametrize(
    ("entry", "found", "do"),
    [
        ("10.1.2.3/8", "not how that network is written", "write 10.0.0.0/8"),
        ("FD00:0::/8", "not how that network is written", "write fd00::/8"),
        ("10.0.0.0/33", "no network and no host name", "such as 10.0.0.0/8 and host names such"),
        ("10.0.0.300", "no network and no host name", "such as 10.0.0.0/8 and host names such"),
        ("10.*", "no network and no host name", "such as 10.0.0.0/8 and host names such"),
        ("*.internal", "no network and no host name", "such as images.internal"),
        ("http://images.internal/", "no network and no host name", "such as images.internal"),
        ("images.internal:8080", "no network and no host name", "such as images.internal"),
        ("bücher.internal", "no network and no host name", "such as images.internal"),
        ("", "no network and no host name", "such as images.internal"),
        ("169.254.169.254", "link-local or tells secrets", "leave it out"),
        ("169.254.0.0/16", "link-local or tells secrets", "leave it out"),
        ("fe80::/64", "link-local or tells secrets", "leave it out"),
        ("::ffff:10.0.0.0/104", "IPv4 inside IPv6", "write the IPv4 network itself"),
    ],
)
def test_an_entry_that_opens_nothing_says_what_to_write(entry, found, do):
    with pytest.raises(ValueError, match=found) as error:
        allowed([entry])
    assert repr(entry.lower()) in error.value.args[0]
    assert do in error.value.args[1]
