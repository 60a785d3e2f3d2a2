package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The journal has its own time and wants the priority. Any other log gets the time.
func TestLogForms(t *testing.T) {
	for _, c := range []struct {
		o       options
		journal bool
		want    string
	}{
		{options{}, false, `^time=\S+ level=INFO msg=ready rules=2 link.name=pin0\ntime=\S+ level=WARN msg=hm\n$`},
		{options{logJSON: true}, false, `^\{"time":"[^"]+","level":"INFO","msg":"ready","rules":2,"link":\{"name":"pin0"\}\}\n\{"time":.*"hm"\}\n$`},
		{options{}, true, `^<6>level=INFO msg=ready rules=2 link.name=pin0\n<4>level=WARN msg=hm\n$`},
		{options{logJSON: true}, true, `^<6>\{"level":"INFO","msg":"ready","rules":2,"link":\{"name":"pin0"\}\}\n<4>\{"level":"WARN","msg":"hm"\}\n$`},
		{options{logLevel: slog.LevelDebug}, true, `^<6>level=INFO .*\n<4>level=WARN msg=hm\n<7>level=DEBUG msg=detail\n<3>level=ERROR msg=no\n$`},
		{options{logLevel: slog.LevelWarn}, true, `^<4>level=WARN msg=hm\n<3>level=ERROR msg=no\n$`},
	} {
		var b bytes.Buffer
		log := newLogFor(&b, c.o, c.journal)
		log.With("rules", 2).WithGroup("link").Info("ready", "name", "pin0")
		log.Warn("hm")
		if c.o.logLevel != slog.LevelInfo {
			log.Debug("detail")
			log.Error("no")
		}
		if !regexp.MustCompile(c.want).MatchString(b.String()) {
			t.Errorf("%+v, journal %v:\n%s", c.o, c.journal, &b)
		}
	}
}

// A duration is a number of seconds in JSON, as everywhere else.
func TestLogDurations(t *testing.T) {
	for _, c := range []struct {
		json bool
		want string
	}{{false, "took=1.447078s"}, {true, `"took":1.447078}`}} {
		var b bytes.Buffer
		newLogFor(&b, options{logJSON: c.json}, false).Info("flow", "took", 1447078*time.Microsecond)
		if !strings.Contains(b.String(), c.want) {
			t.Errorf("%s, want %s", &b, c.want)
		}
	}
}

// newStream returns a file, and what JOURNAL_STREAM calls it.
func newStream(t *testing.T) (*os.File, string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return f, fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// Device and inode tell whether it is the journal, not only the environment.
func TestToJournal(t *testing.T) {
	f, stream := newStream(t)
	if !toJournal(f, stream) || toJournal(f, "") || toJournal(f, "1:2") || toJournal(os.Stdin, stream) || toJournal(new(bytes.Buffer), stream) {
		t.Error("a stream is taken for another")
	}
}

// pinproxy itself, with the standard error that the service manager names.
func TestLogToJournal(t *testing.T) {
	w := newNetwork(t)
	f, stream := newStream(t)
	cmd := w.command("--rule", "203.0.113.2:443=63999")
	cmd.Stderr = f
	cmd.Env = append(cmd.Env, "JOURNAL_STREAM="+stream)
	p := w.startCommand(cmd)
	p.poll("a line that says ready", func() bool {
		b, err := os.ReadFile(f.Name())
		return err == nil && strings.Contains(string(b), "<6>level=INFO msg=ready link=pin0")
	})
}
