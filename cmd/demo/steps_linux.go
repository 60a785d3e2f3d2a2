package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

const (
	hopeless = "1"              // seconds given to a request that can't get through
	patience = 30 * time.Second // for anything else
)

// family is what a step needs to know about IPv4 or IPv6.
type family struct {
	flag   string // of curl
	client string
	bank   int // in demo.bank
}

var (
	ipv4 = family{"-4", lab.Client4, 0}
	ipv6 = family{"-6", lab.Client6, 1}
)

// want returns the source that the bank has to see.
func (f family) want() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(f.client), port)
}

// all runs the steps, up to the first that fails.
func (d *demo) all(ctx context.Context) error {
	fmt.Fprint(d.w, introduction)
	before := d.client.Snapshot()

	d.step("Without pinproxy. The kernel takes any source port, and the firewall drops the connection.")
	for _, f := range []family{ipv4, ipv6} {
		if err := d.dropped(ctx, f); err != nil {
			return err
		}
	}
	d.step("pinproxy starts, with one rule: destination = source port.")
	if err := d.start(ctx); err != nil {
		return err
	}
	during := d.client.Snapshot()

	d.step("The same command again. What it prints is what the bank saw.")
	if err := d.pinned(ctx, ipv4); err != nil {
		return d.withLog(err)
	}
	if err := d.explainLog(ctx); err != nil {
		return d.withLog(err)
	}
	d.step("Over IPv6.")
	if err := d.pinned(ctx, ipv6); err != nil {
		return d.withLog(err)
	}
	d.step("Two connections at once. There is one port, so the second waits until the first is done.")
	if err := d.two(ctx); err != nil {
		return d.withLog(err)
	}
	d.step("pinproxy ends. The client is as it was.")
	if err := d.end(ctx); err != nil {
		return d.withLog(err)
	}
	return d.compare(before, during, d.client.Snapshot())
}

// dropped shows a request that fails at the firewall.
func (d *demo) dropped(ctx context.Context, f family) error {
	drops := d.firewall.Dropped()
	p, err := d.get(ctx, bankURL, f.flag, "-m", hopeless)
	if err != nil {
		return err
	}
	err = p.Wait()
	d.output(p.Stdout() + p.Stderr())
	drops = d.firewall.Dropped() - drops
	switch {
	case err == nil:
		return errors.New("a request without pinproxy got through the firewall")
	case drops == 0:
		return fmt.Errorf("a request without pinproxy failed, but not at the firewall: %w", err)
	}
	d.output(fmt.Sprintf("(packets the firewall dropped: %d)\n", drops))
	return nil
}

// start starts pinproxy and waits until it says that it is ready.
func (d *demo) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.Command(d.path, "--rule", rule)
	// In a user namespace we can't write to /run. Elsewhere pinproxy changes to another user.
	run := filepath.Join(d.dir(), "run")
	if err := errors.Join(os.Chmod(d.dir(), 0o755), os.MkdirAll(run, 0o755)); err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+run)
	d.command("#", "pinproxy", "--rule", rule, "&")
	var err error
	if d.pinproxy, err = d.client.Start(cmd); err != nil {
		return err
	}
	if err := d.pinproxy.Expect(ctx, "msg=ready"); err != nil {
		return err
	}
	d.showLog("msg=ready")
	return nil
}

// pinned shows a request that succeeds, from the source that the firewall passes.
func (d *demo) pinned(ctx context.Context, f family) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p, err := d.get(ctx, bankURL, f.flag)
	if err != nil {
		return err
	}
	return d.answered(ctx, p, f)
}

// answered shows the end of a request, and checks its answer and what the bank has seen so far.
func (d *demo) answered(ctx context.Context, p *lab.Process, f family) error {
	err := p.Wait()
	d.output(p.Stdout() + p.Stderr())
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no answer within %s", patience)
	case err != nil:
		return fmt.Errorf("the request failed: %w", err)
	}
	if want := fmt.Sprintf("you came from %s\n", f.want()); !strings.HasSuffix(p.Stdout(), want) {
		return fmt.Errorf("the answer should have been %q", want)
	}
	for _, src := range d.bank[f.bank].Seen() {
		if src != f.want() {
			return fmt.Errorf("the bank saw a request from %s", src)
		}
	}
	return nil
}

// two shows a second request that waits for the port that the first one holds.
func (d *demo) two(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	first, err := d.get(ctx, bankURL+"statement", ipv4.flag, "&")
	if err != nil {
		return err
	}
	select {
	case <-d.asked:
	case <-first.Done():
	case <-ctx.Done():
		return fmt.Errorf("wait for the first request: %w", ctx.Err())
	}
	second, err := d.get(ctx, bankURL, ipv4.flag)
	if err != nil {
		return err
	}
	const waits = "flow waits for its source port"
	if err := d.pinproxy.Expect(ctx, waits); err != nil {
		return err
	}
	d.showLog(waits)
	close(d.answer)
	if err := d.answered(ctx, first, ipv4); err != nil {
		return err
	}
	return d.answered(ctx, second, ipv4)
}

// end ends pinproxy the way a service manager would.
func (d *demo) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.command("#", "kill", fmt.Sprint(d.pinproxy.Pid()))
	if err := d.pinproxy.Signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("end pinproxy: %w", err)
	}
	select {
	case <-d.pinproxy.Done():
	case <-ctx.Done():
		return errors.New("pinproxy did not end")
	}
	d.showLog("msg=ending")
	if err := d.pinproxy.Wait(); err != nil {
		return fmt.Errorf("pinproxy ended with %w", err)
	}
	return nil
}

// compare shows how the client's state differs from before.
func (d *demo) compare(before, during, after string) error {
	d.output(fmt.Sprintf("(lines of the client's links, addresses, routes, rules and sysctls that differ from before:\n"+
		"%d while pinproxy ran, %d now)\n", len(difference(before, during)), len(difference(before, after))))
	if after != before {
		return fmt.Errorf("the client is not as it was:\n%s", strings.Join(difference(before, after), "\n"))
	}
	return nil
}

// difference returns the lines that are in only one of two snapshots.
func difference(a, b string) (lines []string) {
	was, is := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			lines = append(lines, "- "+line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			lines = append(lines, "+ "+line)
		}
	}
	return lines
}

// get starts a request from the client, with curl if there is one. An & among the flags is only shown to the reader.
func (d *demo) get(ctx context.Context, url string, flags ...string) (*lab.Process, error) {
	shown, argv := []string{"curl", "-sS"}, []string{"curl", "-sS"}
	if _, err := exec.LookPath("curl"); err != nil {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		shown, argv = []string{"demo", "get"}, []string{self, "get"}
	}
	background := slices.Contains(flags, "&")
	flags = slices.DeleteFunc(slices.Clone(flags), func(f string) bool { return f == "&" })
	args := append(flags, url)
	shown, argv = append(shown, args...), append(argv, args...)
	if background {
		shown = append(shown, "&")
	}
	d.command("$", shown...)

	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	ca := d.net.CA()
	// No proxies and no .curlrc of the user's. The authority that signed the bank's certificate is named in the
	// variables that curl and Go read.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir(), "CURL_CA_BUNDLE=" + ca, "SSL_CERT_FILE=" + ca}
	return d.client.Start(cmd)
}

// dir returns a directory that is removed with the network.
func (d *demo) dir() string { return filepath.Dir(d.net.CA()) }

// explainLog shows the line that pinproxy logs at the end of a flow.
func (d *demo) explainLog(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.pinproxy.Expect(ctx, "msg=flow "); err != nil {
		return err
	}
	d.showLog("msg=flow ")
	d.output("(pinproxy logs such a line for each connection; they are left out below)\n")
	return nil
}

// showLog shows the lines of pinproxy's log that contain mark.
func (d *demo) showLog(mark string) {
	for line := range strings.Lines(d.pinproxy.Stderr()) {
		if strings.Contains(line, mark) {
			d.output(fold(line))
		}
	}
}

// withLog adds pinproxy's log to err.
func (d *demo) withLog(err error) error {
	return fmt.Errorf("%w\npinproxy logged:\n%s", err, d.pinproxy.Stderr())
}
