"""What pages share: everything is escaped, unless it is our own file; their heads."""

from vit_jax.templates import environment, inline_file, policy

PAGES = 'vit_jax.analysis.pages'


def test_names_are_escaped_and_printable():
  template = environment(PAGES).from_string(
    '{{ name }}|{{ name | several_lines }}|{{ 1234 | thousands }}'
  )
  assert template.render(name='<b>\n\u202e') == ('&lt;b&gt;\\n\\u202e|&lt;b&gt;\n\\u202e|1,234')


def test_files_of_the_package_are_printed_as_they_are():
  script = inline_file(PAGES, 'explain_page.js')
  assert environment(PAGES).from_string('{{ script }}').render(script=script) == str(script)
  assert '=>' in script and '</script' not in script


def test_heads_are_shared():
  template = environment(PAGES).from_string(
    "{% import 'page_parts.html.j2' as parts %}{{ parts.head(title, 'p { }', policy) }}"
  )
  head = template.render(title='</title><b>\x1b', policy=policy('alert(1)'))
  assert '<title>&lt;/title&gt;&lt;b&gt;\\x1b</title>' in head and '<style>p { }</style>' in head
  digest = 'bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='  # as browsers compute it
  assert f'script-src &#39;sha256-{digest}&#39;' in head
  assert 'Policy' not in template.render(title='', policy='')
