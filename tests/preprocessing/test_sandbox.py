"""Templates are bounded in what they make, do and take; honest ones never notice."""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import ChatTemplate, InputError, sandbox
from preprocessing.sandbox import Budget, TemplateLimit

TALK = [{"role": "user", "content": "Hi"}]
DOUBLING = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ %s }}"
NESTED = "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"

TOO_MUCH = [
    # one operation
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ 'x' * 10**6 * 10**6 }}",
    "{% set x = ['a'] * 10**9 %}",
    "{{ 10 ** (10**10) }}",
    "{{ 2 ** 10**9 }}{{ 2 ** (2 ** 40) }}",
    "{{ ('9' * 4000) | int }}",
    "{{ (1).to_bytes(4, 'big') * 10**10 }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ range(10**9) }}",
    "{% set x = 'x' * 900000 %}{{ x + x }}",
    "{% set x = 'x' * 600000 %}{{ x ~ x }}",
    "{% autoescape true %}{{ 'x' ~ ('y' * 10**9) }}{% endautoescape %}",
    # widths
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.*f' % (10**9, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%(a)1000000000d' % {'a': 1} }}",
    "{{ '%(a(b)c)1000000000d' % {'a(b)c': 1} }}",
    "{{ '{:٩٩٩٩٩٩٩٩٩}'.format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{x:>999999999}'.format_map({'x': 1}) }}",
    "{{ ('%(a)s' * 10000) % {'a': 'x' * 500000} }}",
    "{{ ('{0}' * 10000).format('x' * 500000) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ '1'.zfill(10**9) }}",
    "{{ '\t\t'.expandtabs(10**9) }}",
    "{{ 'a\nb' | indent(10**9) }}",
    "{{ ('\n' * 9000) | indent('x' * 9000) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ messages | tojson(indent='x' * 900000) }}",
    "{{ range(9000) | list | tojson(separators=('x' * 900000, ':')) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{% filter center(10**9) %}x{% endfilter %}",
    # texts put into texts
    "{{ range(100000) | join('x' * 900000) }}",
    "{{ ('x' * 900000).join(range(100000) | map('string')) }}",
    "{{ ('x' * 900000) | replace('', 'x' * 900000) }}",
    "{{ ('x' * 900000).replace('x', 'y' * 900000) }}",
    "{{ ('x' * 900000) | replace(new='x' * 900000, old='x') }}",
    # one operation of much time
    "{{ 'a'.translate({97: 'x' * 10**5}) }}",
    "{{ ('é' * 900000).encode('punycode') }}",
    "{{ (('<!---->' * 100000) | safe).striptags() }}",
    "{{ ('a' * 600000).rfind('ab' + 'a' * 300000) }}",
    "{{ ('a' * 450000) | trim('b' * 450000 ~ 'a') }}",
    # little by little
    DOUBLING % ("'x'", "ns.x + ns.x", "ns.x | length"),
    DOUBLING % ("'x'", "ns.x ~ ns.x", "ns.x | length"),
    DOUBLING % ("[1]", "[ns.x, ns.x]", "ns.x"),
    DOUBLING % ("[1]", "(ns.x, ns.x)", "ns.x | tojson"),
    DOUBLING % ("[1]", "{'a': ns.x, 'b': ns.x}", "ns.x | string"),
    DOUBLING % ("[1]", "dict(a=ns.x, b=ns.x)", "ns.x == 1"),
    DOUBLING % ("[1]", "ns.x + ns.x", "ns.x | length"),
    NESTED,
    "{% set x %}" + NESTED + "{% endset %}",
    "{% macro f() %}" + NESTED + "{% endmacro %}{{ f() }}",
    "{% for i in range(50000) %}" + "x" * 1000 + "{% endfor %}",
    "{% set x %}{% for i in range(50000) %}" + "x" * 1000 + "{% endfor %}{% endset %}",
    "{% set a = 'x' * 900000 %}{% for i in range(1000) %}{{ a }}{% endfor %}",
    "{% set a = ['x' * 900] * 900 %}{% for i in range(1000) %}{{ a }}{% endfor %}",
    "{% set a = 'x' * 900000 %}{% for i in range(99999) %}{% if a.count('xy') %}{% endif %}{% endfor %}",
    "{% set a = 'x' * 900000 %}{% for i in range(99999) %}{% if a[1:] == 'y' %}{% endif %}{% endfor %}",
    "{% set a = 'x' * 900000 %}{% set ns = namespace(l=none) %}"
    "{% for i in range(9999) %}{% set ns.l = namespace(x=a[i:], l=ns.l) %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{{ range(100000) | map('string') | map('center', 1000) | join }}",
    "{{ [range(10000) | list] * 10000 }}",
]


@pytest.mark.parametrize("source", TOO_MUCH)
def test_too_much_is_refused(source: str) -> None:
    """In about a second, and in little memory; the limit is named, or what Python and Jinja limit by themselves."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        limits = r"^evil\.jinja (takes|makes|fails .*(RecursionError|Range too big|SecurityError))"
        with pytest.raises(InputError, match=limits):
            ChatTemplate(source, name="evil.jinja").render(TALK)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert time.thread_time() - start < 30  # of what would take hours; tracing slows it down


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.02)
    content = "x" * 1_000_000
    monkeypatch.setattr(sandbox, "SECONDS_PER_SIZE", 0.0)
    template = ChatTemplate(
        "{% for i in range(99999) %}{% if 'xy' in messages[0].content[0].text %}{% endif %}{% endfor %}"
    )
    with pytest.raises(InputError, match=r"the chat template takes more than 0\.0 s: mend it"):
        template.render([{"role": "user", "content": content}])


def test_waiting_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    monkeypatch.setattr(sandbox, "STEPS", 10**9)
    budget = Budget("")
    time.sleep(0.2)
    for _ in range(10):
        budget.step()
    with pytest.raises(TemplateLimit, match=r"takes more than 0\.1 s$"):
        sum(1 for _ in budget.count(iter(int, 1)))


HONEST = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.previtem.role if loop.previtem }}"
    "{{ loop.cycle('a', 'b') }}{% if not loop.last %}, {% endif %}{% else %}none{% endfor %}",
    "{% macro turn(m, end='!') %}{{ m.role | upper ~ ': ' ~ m.content[0].text }}{{ end }}{{ caller() if caller }}"
    "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% call turn(m, end='?') %}x{% endcall %}{% endfor %}",
    "{% set ns = namespace(text='', n=0, l=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.text = ns.text + m.content[0].text %}{% set ns.l = ns.l + [m.role] %}{% endfor %}"
    "{{ ns.text, ns.n, ns.l }}",
    "{% for role, group in messages | groupby('role') %}{{ role }}:{{ group | length }}{% endfor %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | map(attribute='role') | join(',') }}",
    "{% for m in messages[1:] %}{{ m.content[0].text[::-1] }}{% endfor %}{{ messages[:-1] | length }}"
    "{{ 2 ** 10 * 3 % 7 }}",
    "{% for k, v in {'a': 1, 'b': [1, 'x', none]}.items() %}{{ k }}={{ v }}{% endfor %}{{ (1, 2) }}{{ {'a': 'b'} }}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ x if x is number else '(' ~ loop(x) ~ ')' }}{% endfor %}",
    "{{ '%s-%05d' % ('a', 7) }}{{ '{:>5}|{x}'.format('a', x=5000000) }}{{ '*%s*' % 'bold' }}"
    "{{ nothing | default(5000000) }}",
    "{{ '{\"a\": {\"b\": \"%s\"}} 100%% * ' % 'x' }}{{ '{{\"a\": {}}} 50% *{x:>3}'.format('a', x=1) }}"
    "{{ '%s 9999999' | format(1) }}",
    "{{ ['b', 'a'] | sort | join(', ') }}{{ 'x' | center(9) }}{{ 'a\nb' | indent(4, true) }}"
    "{{ 'a-b'.split('-') | last }}",
    "{{ messages | tojson(indent=4) }}{{ [1, 2, 3] | batch(2, 0) | list }}"
    "{{ [3, 1] | max }}{{ '<&' | e }}{{ 'a b' | title }}",
    "{% set x %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}"
    "{{ x | replace('user', 'U') | trim }}{{ 'a/b/c'.rsplit('/', 1) }}{{ ' x '.strip() }}{{ x is string }}",
    "{% filter upper %}{% for i in range(3) if i != 1 %}{{ i }}a{% endfor %}{% endfilter %}{{ range(5) | list }}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% endfor %}{% set c, d = 5, 6 %}"
    "{{ c }}{{ d }}{{ 1 in (1, 2) }}{{ [] or 'e' }}",
    "{% block a %}{{ messages | length }}{% endblock %}{{ self.a() }}{{ joiner(',')() }}{{ cycler(1, 2).next() }}",
]


@pytest.mark.parametrize("source", HONEST)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_honest_templates_are_rendered_as_transformers_does(source: str, texts: list[str]) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    plain: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(texts)
    ]
    rendered, _ = utils.render_jinja_template([plain], chat_template=source)
    assert ChatTemplate(source).render(plain) == rendered[0]


QUADRATIC = (
    "{% for m in messages %}{{ m.role }}{% for n in messages %}{% if n.role == 'system' %}!{% endif %}{% endfor %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ m.content[0].text | trim }}{% endfor %}"
)


@pytest.mark.parametrize("source", [None, QUADRATIC])
def test_long_conversations_are_rendered(source: str | None) -> None:
    """Hundreds of messages and a million characters, also by a template that looks at all messages for each."""
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 600} for i in range(400)]
    text = ChatTemplate(source).render(talk)
    assert all(f"{i} word" in text for i in range(400))
    assert len(text) > 1_200_000


def test_threads_have_budgets_of_their_own() -> None:
    template = ChatTemplate("{% for i in range(60000) %}{% endfor %}{{ messages[0].content[0].text }}")
    results: list[str] = []

    def render(i: int) -> None:
        results.extend(template.render([{"role": "user", "content": str(i)}]) for _ in range(3))

    threads = [threading.Thread(target=render, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted("0123" * 3)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ x | wordwrap }}",
    ],
)
def test_templates_that_cannot_be_compiled(source: str) -> None:
    with pytest.raises(InputError, match=r"^the chat template"):
        ChatTemplate(source)
