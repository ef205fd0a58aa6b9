"""What pages share: everything is escaped, unless it is our own file."""

from vit_jax.templates import environment, inline_file

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
