// A test of the user's own: its name has two dots, so it is not deployed.
import "not-a-package-that-anyone-has";

export const neverDeployed = true;
