"""User names, passwords and tokens do not show in messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.sources.passwords import without_secrets

PRINTED = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'")
USERINFO = st.text(st.one_of(st.sampled_from("/?#@:%&=[]\\"), PRINTED), min_size=1)
"""Text with many of the characters that a URL should percent-encode."""
HOSTS = ["camera", "10.0.0.7", "camera:8554", "[fe80::1]:554", "[::1]"]


@given(USERINFO, USERINFO, st.sampled_from(HOSTS), st.sampled_from(["", "/", "/live", "/a/b?channel=1", "?x#y"]))
def test_passwords_do_not_show(user: str, password: str, host: str, path: str) -> None:
    clean = f"rtsp://{host}{path}"
    for userinfo in (f"{user}:{password}", user, f":{password}", ""):
        url = f"rtsp://{userinfo}@{host}{path}"
        assert without_secrets(url) == clean
        assert without_secrets(f"cannot open {url}: refused") == f"cannot open {clean}: refused"
        two = f'"{url}" and {url} cannot be opened'
        assert without_secrets(two) == f'"{clean}" and {clean} cannot be opened'


@given(st.text(), st.sampled_from(HOSTS))
def test_any_text_is_taken(text: str, host: str) -> None:
    assert without_secrets(f"rtsp://{host} {text}").startswith("rtsp://")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://user:p@ss@host/live", "rtsp://host/live"),
        ("rtsp://user:pa/ss@host/live", "rtsp://host/live"),
        ("rtsp://user:0000000/@camera", "rtsp://camera"),
        ("rtsp://u:p?x@host", "rtsp://host"),
        ("rtsp://u:p#x@host", "rtsp://host"),
        ("rtsp://u:a@b@host", "rtsp://host"),
        ("rtsp://u:p://x@host", "rtsp://host"),
        ("rtsp://u:p%40%2F%3F%23@host/live", "rtsp://host/live"),
        ("RTSPS://me@host/live", "RTSPS://host/live"),
        ("rtsp://u:p@[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
        ("rtsp://[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
        ("rtsp://u:p@h1/x and rtsps://v:q/@h2/y, http://h3:80", "rtsp://h1/x and rtsps://h2/y, http://h3:80"),
        ("rtsp://u:p@h1/x,rtsp://v:q@h2/y", "rtsp://h2/y"),  # more than needed is hidden
        # No userinfo, or one with a slash: only the reader could tell, so it is hidden.
        ("rtsp://host:554/cam@1", "rtsp://1"),
        ("rtsp://host/cam@2x", "rtsp://2x"),
        ("rtsp://host/live?mail=a@b", "rtsp://b"),
        # White space or a quote in a password.
        ("rtsp://u:my pass@w@host/live", "rtsp://host/live"),
        ("rtsp://u:p\"x'@host/live", "rtsp://host/live"),
        # An @ of the sentence around a URL is not of the URL.
        ("rtsp://h:554, says a@b", "rtsp://h:554, says a@b"),
        ("(rtsp://[fe80::1]:554): ask a@b", "(rtsp://[fe80::1]:554): ask a@b"),
        ("write to a@b", "write to a@b"),
        ("rtsp://host/live?user=me&password=secret&channel=1", "rtsp://host/live?user=me&password=***&channel=1"),
        (
            "rtspsrc location=rtsp://h/ user-id=me user-pw=secret ! x",
            "rtspsrc location=rtsp://h/ user-id=*** user-pw=*** ! x",
        ),
        (
            'rtspsrc location="rtsp://a:b@h/x" user-pw="my secret" ! x',
            'rtspsrc location="rtsp://h/x" user-pw=*** ! x',
        ),
        ("user-pw='my secret' ! x", "user-pw=*** ! x"),
        (r'user-pw="my \"own\" secret" ! x', "user-pw=*** ! x"),
    ],
)
def test_secrets_in_urls_and_pipelines(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
