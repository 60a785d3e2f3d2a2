package packaging

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// flags are those of the usage text.
func flags(t *testing.T) (found []string) {
	t.Helper()
	b, err := os.ReadFile("../cmd/pinproxy/words.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, )? *--([a-z-]+)`).FindAllStringSubmatch(string(b), -1) {
		found = append(found, m[1])
	}
	if len(found) < 15 {
		t.Fatalf("flags found: %q", found)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// Every shell offers every flag, and no other.
func TestCompletionsNameTheFlags(t *testing.T) {
	want := flags(t)
	for file, pattern := range map[string]string{
		"completions/pinproxy.bash": `[ ']--([a-z-]+)`,
		"completions/_pinproxy":     `[{',*]--([a-z-]+)`,
		"completions/pinproxy.fish": `(?m)^complete .* -l ([a-z-]+)`,
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(b), -1) {
			got = append(got, m[1])
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s has the flags\n%q, want\n%q", file, got, want)
		}
	}
}

// tab is what is typed before the tabulator, and what the shell makes of it.
var tab = []struct{ typed, want string }{
	{"pinproxy --dial", "--dial-timeout"},
	{"pinproxy sta", "status"},
	{"pinproxy --offload a", "auto"},
	{"pinproxy --log-level=info --gatew", "--gateway"},
	{"pinproxy check --conn", "--connect"},
	{"pinproxy status --wat", "--watch"},
	{"pinproxy status --s", "--socket"}, // neither --strict nor --socket-group
	{"pinproxy check --d", "--dial-timeout"},
	{"pinproxy --rule a:1=2 -- mktem", "mktemp"},
	{"pinproxy --rule a:1=2 -- cat packag", "packaging_test.go"},
}

func TestCompletionInBash(t *testing.T) {
	for _, c := range tab {
		words := strings.Fields(c.typed)
		script := fmt.Sprintf("source completions/pinproxy.bash; COMP_WORDS=(%s); COMP_CWORD=%d; _pinproxy; echo \"${COMPREPLY[@]}\"", c.typed, len(words)-1)
		if got := run(t, "bash", "--norc", "-c", script); strings.TrimSpace(got) != c.want {
			t.Errorf("%q becomes %q, want %q", c.typed, got, c.want)
		}
	}
}

// bash has "=" for a word of its own.
func TestCompletionBehindEquals(t *testing.T) {
	for words, want := range map[string]string{"--offload = a": "auto", "--log-format = ''": "text json", "--log-format =": "text json"} {
		script := fmt.Sprintf(`source completions/pinproxy.bash; COMP_WORDS=(pinproxy %s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _pinproxy; echo "${COMPREPLY[@]}"`, words)
		if got := run(t, "bash", "--norc", "-c", script); strings.TrimSpace(got) != want {
			t.Errorf("%q becomes %q, want %q", words, got, want)
		}
	}
}

func TestCompletionInFish(t *testing.T) {
	home := t.TempDir()
	for _, c := range tab {
		out := run(t, "env", "HOME="+home, "XDG_CONFIG_HOME="+home, "fish", "--no-config", "-c", fmt.Sprintf("source completions/pinproxy.fish; complete -C %q", c.typed))
		got, _, _ := strings.Cut(strings.TrimSpace(out), "\t")
		if got != c.want || strings.Contains(strings.TrimSpace(out), "\n") {
			t.Errorf("%q becomes %q, want %q", c.typed, out, c.want)
		}
	}
}

// zsh completes at a terminal only, which it can make itself.
const zshScript = `
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "fpath=($PWD/completions \$fpath); autoload -Uz compinit; compinit -u -D; PS1='re''ady> '"
zpty -r shell out "*ready> *"
for typed want in "$@"; do
	zpty -w -n shell $'\C-u'"$typed"$'\t'
	zpty -r shell out "*$want*" && print -r -- "$want"
done
zpty -d shell
`

func TestCompletionInZsh(t *testing.T) {
	need(t, "zsh")
	args := []string{"-f", "-c", zshScript, "zsh"}
	var want []string
	for _, c := range tab {
		args = append(args, c.typed, c.want)
		want = append(want, c.want)
	}
	if got := strings.Fields(run(t, "zsh", args...)); !slices.Equal(got, want) {
		t.Errorf("they become %q, want %q", got, want)
	}
}
