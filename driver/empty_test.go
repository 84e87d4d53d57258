package driver_test

import "testing"

// An image without a valid account of its objects is not walked through: what it uses is
// not told, and what is not sure to be empty stays in the trash.
func TestAnImageOfWhichCephKeepsNoAccount(t *testing.T) {
	c, one, _ := twoNodes(t)
	one.trash = ever
	one.restart()
	for _, valid := range []bool{true, false} {
		one.create("v", nil)
		if !valid {
			c.Invalidate("v")
		}
		if _, told := one.status("v")["used"]; told != valid {
			t.Errorf("account valid: %v; used is told: %v", valid, told)
		}
		if err := one.Remove(within(t, ever), "v"); err != nil {
			t.Fatal(err)
		}
		one.Purge(within(t, ever))
		if kept := c.Restore("v"); kept == valid {
			t.Errorf("account valid: %v; kept in the trash: %v", valid, kept)
		}
	}
}
